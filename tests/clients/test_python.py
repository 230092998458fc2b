"""For API nodes on Python: the store as it is documented, Starlette's authentication, a service
over HTTP, and two nodes that share their sessions."""

import ast
import asyncio
import copy
import inspect
import logging
import os
import pickle
import pprint
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import orjson
import pytest
from fastapi import FastAPI
from redis import Redis
from starlette.applications import Starlette
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

import sesiones
from sesiones import Refusal, Sesion, SessionStore, StoreUnavailable, tokens
from sesiones.clients.http import SessionClient
from sesiones.clients.starlette import SessionBackend, Sessions, on_error
from sesiones.sesion import INT_MAX
from sesiones.settings import Settings
from tests.harness import asgi
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, comes_true

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text("utf-8"), re.DOTALL)
UNREACHABLE = "redis://127.0.0.1:1"


# The docs


async def run(example: str, url: str) -> dict[str, Any]:
    """Its names."""
    source = example.replace("redis://127.0.0.1:6379/0", url)
    code = compile(source, "python.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {"__name__": "example"}
    awaitable = eval(code, names)
    if awaitable is not None:
        await awaitable
    return names


async def test_the_store_of_the_docs(redis_server: RedisServer, redis: "Redis") -> None:
    await run(EXAMPLES[0], redis_server.url)
    assert redis.exists(f"sesiones:{{{tokens.user_bucket(7)}}}:n")


async def test_the_application_of_the_docs(redis_server: RedisServer, redis: "Redis") -> None:
    names = await run(EXAMPLES[1], redis_server.url)
    async with names["store"] as store:
        token = (await store.create(7, "d")).Token_Sesion
        reply = await asgi.request(names["app"], "GET", "/yo", [("x-auth-token", token)])
        assert (reply.status, reply.json()) == (200, {"usuario": 7})
        assert (await asgi.request(names["app"], "GET", "/yo")).status == 401


async def test_the_client_of_the_docs() -> None:
    assert isinstance((await run(EXAMPLES[2], ""))["backend"], SessionBackend)


def test_the_methods_of_the_docs() -> None:
    table = (DOCS / "python.md").read_text("utf-8")
    named = set(re.findall(r"^\| `(\w+)\(", table, re.MULTILINE))
    assert all(inspect.iscoroutinefunction(getattr(SessionStore, name)) for name in named)
    assert {"find", "create", "update", "end", "end_all", "sessions", "end_user"} <= named


def test_the_defaults_are_the_services() -> None:
    settings = Settings()
    parameters = inspect.signature(SessionStore.from_url).parameters
    for name, parameter in parameters.items():
        if name not in ("url", "metrics"):
            setting = "redis_timeout" if name == "timeout_seconds" else name
            assert parameter.default == getattr(settings, setting)


def test_it_is_typed() -> None:
    assert (Path(sesiones.__file__).parent / "py.typed").exists()


# What the methods take


class Text(str):
    """Reads as another text wherever it is asked itself."""

    __slots__ = ()

    def __str__(self) -> str:
        return "other"

    __repr__ = __str__

    def __format__(self, _: str) -> str:
        return "other"

    def encode(self, *_: str) -> bytes:
        return b"other"


class Number(int, Enum):
    """Formats as its name."""

    SEVEN = 7


class Index:
    """As numpy's integers: no int, though it could be one."""

    def __index__(self) -> int:
        return 7


BAD_INTEGERS: list[Any] = [
    None,
    True,
    False,
    "7",
    b"7",
    7.0,
    Index(),
    [],
    -1,
    INT_MAX + 1,
    2**64,
    -(2**63),
]
BAD_DEVICES: list[Any] = [
    *(None, 7, b"laptop", ["laptop"], "", "x" * 513, "a\nb", "\0", "\x7f", "\x85", "\x9f"),
    *("\ud800", "a\udfff", "\ud83d\udd11"),
]
BAD_TOKENS: list[Any] = [
    *(None, True, 7, 7.5, b"ses_" + b"A" * 45, bytearray(49), [], {}, object(), Index()),
    *("", " ", "ses_", "ses_" + "A" * 44, "ses_" + "A" * 46, "ses_" + "A" * 45 + "\n"),
    *("ses_" + "A" * 44 + "é", "\ud800", "x" * 10_000, "*", "ses_#1a2b3c4d", Text("ses_"), ("a",)),
]


def use_of(sesion: Sesion) -> dict[str, int]:
    """What a use in a later second changes."""
    return {
        "Ultima_Actividad": sesion.Ultima_Actividad,
        "Fecha_Expiracion": sesion.Fecha_Expiracion,
    }


@contextmanager
def nothing_is_sent(redis: Redis, but: int = 0) -> Iterator[None]:
    """Redis runs no script meanwhile, or just so many."""
    redis.config_resetstat()
    yield
    stats = redis.info("commandstats")
    calls = (stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))
    assert sum(calls) == but


@pytest.mark.parametrize("value", BAD_INTEGERS)
async def test_methods_refuse_a_user_that_the_api_refuses(
    store: SessionStore, redis: Redis, value: Any
) -> None:
    other = await store.create(8, "laptop")
    await store.probe(5)  # which loads the scripts: each call is one
    with nothing_is_sent(redis, but=1):
        refused = (
            store.create(value, "laptop"),
            store.sessions(value),
            store.end_user(value),
            store.end_user(value, 1),
            store.end_user(8, 0 if value is None else value),
            store.update(other._replace(ID_Usuario=value)),
            store.find(other.Token_Sesion),
        )
        *outcomes, found = await asyncio.gather(*refused, return_exceptions=True)
    wanted = ValueError if type(value) is int else TypeError
    assert [type(o) for o in outcomes] == [wanted] * 4 + [
        ValueError if value is None else wanted,
        wanted,
    ]
    assert isinstance(found, Sesion)
    assert found.ID_Sesion == other.ID_Sesion


@pytest.mark.parametrize("value", BAD_DEVICES)
async def test_methods_refuse_a_device_that_the_api_refuses(
    store: SessionStore, redis: Redis, value: Any
) -> None:
    other = await store.create(8, "laptop")
    await store.probe(5)  # which loads the scripts: each call is one
    with nothing_is_sent(redis, but=1):
        *outcomes, found = await asyncio.gather(
            store.create(7, value),
            store.update(other._replace(Dispositivo=value)),
            store.find(other.Token_Sesion),
            return_exceptions=True,
        )
    wanted = ValueError if isinstance(value, str) else TypeError
    assert [type(outcome) for outcome in outcomes] == [wanted] * 2
    assert isinstance(found, Sesion)
    assert found.ID_Sesion == other.ID_Sesion


@pytest.mark.parametrize(
    "field", ["ID_Sesion", "Fecha_Inicio", "Fecha_Expiracion", "Estado_Sesion", "Ultima_Actividad"]
)
async def test_update_refuses_what_put_refuses(
    store: SessionStore, redis: Redis, field: str
) -> None:
    sesion = await store.create(7, "laptop")
    bounds = {"ID_Sesion": [0], "Estado_Sesion": [2]}.get(field, [])
    with nothing_is_sent(redis):
        for value in BAD_INTEGERS + bounds:
            wanted = ValueError if type(value) is int else TypeError
            with pytest.raises(wanted, match=field):
                await store.update(Sesion(**sesion._asdict() | {field: value}))
        bad: Any = None
        for bad in (None, 7, b"x"):
            with pytest.raises(TypeError, match="Token_Sesion"):
                await store.update(sesion._replace(Token_Sesion=bad))
            with pytest.raises(TypeError):
                await store.update(bad)
        for text in ("", "x", sesion.Token_Sesion + "\n", "\ud800"):
            assert await store.update(sesion._replace(Token_Sesion=text)) is None


@pytest.mark.parametrize("value", BAD_TOKENS)
async def test_no_well_formed_token_is_no_session(
    store: SessionStore, redis: Redis, value: Any
) -> None:
    """Nor does it cost the other checks of its batch anything."""
    made = await store.create(7, "laptop")
    await store.probe(5)
    token = made.Token_Sesion
    with nothing_is_sent(redis, but=1):
        answers: tuple[Any, ...] = await asyncio.gather(
            store.find(value),
            store.find(token),
            store.end(value, token),
            store.end_all(value, token),
            store.end(token, value),
        )
    answers = (*answers[:1], answers[1]._replace(**use_of(made)), *answers[2:])
    assert [*answers] == [None, made, Refusal.UNAUTHENTICATED, Refusal.UNAUTHENTICATED, 0]
    assert await store.end_all(token, value) == 1


async def test_subclasses_of_int_and_str_count_by_their_value(
    store: SessionStore, redis: Redis
) -> None:
    made = await store.create(Number.SEVEN, Text("laptop"))
    assert (made.ID_Usuario, made.Dispositivo) == (7, "laptop")
    assert redis.exists("sesiones:{eQ}:u:7")
    assert len(await store.sessions(Number.SEVEN)) == 1
    given = made._replace(Dispositivo=Text("phone"), Token_Sesion=Text(made.Token_Sesion))
    assert await store.update(given._replace(ID_Usuario=Number.SEVEN)) == made._replace(
        Dispositivo="phone"
    )
    found = await store.find(Text(made.Token_Sesion))
    assert found is not None
    assert (type(found.Token_Sesion), type(found.Dispositivo)) == (str, str)
    other = await store.create(7, "laptop")
    assert await store.end(Text(made.Token_Sesion), Text(other.Token_Sesion)) == 1
    assert await store.end_all(Text(made.Token_Sesion), Text(made.Token_Sesion)) == 1


def test_no_token_can_be_chosen() -> None:
    """A tombstone would refuse the session of a token that had one before."""
    assert list(inspect.signature(SessionStore.create).parameters) == [
        "self",
        "ID_Usuario",
        "Dispositivo",
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"idle_seconds": -5},
        {"idle_seconds": 0},
        {"idle_seconds": True},
        {"idle_seconds": 60.0},
        {"idle_seconds": "60"},
        {"idle_seconds": None},
        {"idle_seconds": 43_201},
        {"idle_seconds": 61, "max_seconds": 60},
        {"max_seconds": 2**31},
        {"max_seconds": 0},
        {"touch_seconds": -1},
        {"touch_seconds": False},
        {"max_per_user": 0},
        {"max_per_user": 1_000_001},
        {"timeout_seconds": 0},
        {"timeout_seconds": -1},
        {"timeout_seconds": 0.0009},
        {"timeout_seconds": 61},
        {"timeout_seconds": True},
        {"timeout_seconds": float("nan")},
        {"timeout_seconds": float("inf")},
        {"timeout_seconds": None},
        {"wait_replicas": -1},
        {"wait_replicas": True},
        {"wait_replicas": 101},
        {"key_prefix": "a b"},
        {"key_prefix": ""},
        {"key_prefix": "x" * 33},
        {"key_prefix": "{a}"},
        {"key_prefix": "a\n"},
        {"key_prefix": None},
        {"key_prefix": b"a"},
    ],
    ids=str,
)
def test_from_url_refuses_what_the_settings_refuse(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must (not )?be"):
        SessionStore.from_url("redis://127.0.0.1", **settings)


@pytest.mark.parametrize("url", ["", "redis", "http://h", "redis://:secret@[x", None, 7, b"redis"])
def test_from_url_refuses_a_bad_url_without_repeating_it(url: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|is not") as raised:
        SessionStore.from_url(url)
    assert "secret" not in str(raised.value)


async def test_from_url_takes_the_bounds_of_the_settings() -> None:
    for settings in (
        {"idle_seconds": 1, "max_seconds": 1, "touch_seconds": 0, "max_per_user": 1},
        {"timeout_seconds": 0.001, "wait_replicas": 100, "key_prefix": "x" * 32},
        {"timeout_seconds": 60, "max_per_user": 10_000, "key_prefix": "a.b:c-d_e"},
        {"timeout_seconds": 1 / 3, "max_seconds": 2**31 - 1, "idle_seconds": 2**31 - 1},
    ):
        given: Any = settings
        await SessionStore.from_url("redis://127.0.0.1", **given).aclose()


# What a session shows


class Held(NamedTuple):
    sesion: Sesion


@dataclass
class Kept:
    sesion: Sesion


def test_no_text_of_a_session_shows_its_token(caplog: pytest.LogCaptureFixture) -> None:
    token = tokens.make(7)
    sesion = Sesion(1, 7, token, 1, 2, 1, 1, "laptop")
    logging.getLogger("application").error("%s %r", sesion, [sesion])
    texts = [
        *(repr(sesion), str(sesion), f"{sesion} {sesion!s} {sesion!r}"),
        *(str([sesion]), str({"a": sesion}), repr(Held(sesion)), repr(Kept(sesion))),
        *(pprint.pformat(sesion, width=1), caplog.text, repr(sesion._replace(ID_Usuario=8))),
    ]
    for text in texts:
        assert token[6:] not in text
        assert f"Token_Sesion='ses_#{tokens.fingerprint(token)}'" in text
    assert repr(sesion) == (
        f"Sesion(ID_Sesion=1, ID_Usuario=7, Token_Sesion='ses_#{tokens.fingerprint(token)}', "
        "Fecha_Inicio=1, Fecha_Expiracion=2, Estado_Sesion=1, Ultima_Actividad=1, "
        "Dispositivo='laptop')"
    )


@pytest.mark.parametrize("value", [None, 7, "", "secret", "\ud800", "ses_#1a2b3c4", b"secret"])
def test_no_text_of_a_session_shows_what_stands_for_a_token(value: Any) -> None:
    shown = repr(Sesion(1, 7, value, 1, 2, 1, 1, "laptop"))
    assert "Token_Sesion='...'" in shown


def test_a_listed_session_shows_its_name_in_the_log() -> None:
    assert "'ses_#1a2b3c4d'" in repr(Sesion(1, 7, "ses_#1a2b3c4d", 1, 2, 1, 1, "laptop"))


def test_copies_of_a_session_keep_its_token() -> None:
    token = tokens.make(7)
    sesion = Sesion(1, 7, token, 1, 2, 1, 1, "laptop")
    for same in (
        *(pickle.loads(pickle.dumps(sesion, protocol)) for protocol in range(6)),
        *(copy.copy(sesion), copy.deepcopy(sesion), Sesion(*sesion), Sesion(**sesion._asdict())),
        Sesion(**orjson.loads(sesion.to_json())),
    ):
        assert same == sesion
        assert type(same) is Sesion
        assert same.Token_Sesion == token


# Starlette


async def whoami(request: Request) -> JSONResponse:
    user = request.user
    seen = [user.is_authenticated, user.identity, user.display_name, request.auth.scopes]
    return JSONResponse(seen)


async def listen(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(websocket.user.identity)
    await websocket.close()


def application(sessions: Sessions) -> Starlette:
    app = Starlette(routes=[Route("/", whoami), WebSocketRoute("/ws", listen)])
    app.add_middleware(
        AuthenticationMiddleware, backend=SessionBackend(sessions), on_error=on_error
    )
    return app


def fast_application(sessions: Sessions) -> Starlette:
    app = FastAPI()
    app.add_api_route("/", whoami)
    app.add_middleware(
        AuthenticationMiddleware, backend=SessionBackend(sessions), on_error=on_error
    )
    return app


@pytest.fixture(params=["store", "client"])
async def sessions(
    request: pytest.FixtureRequest, service: Service, store: SessionStore
) -> AsyncIterator[Sessions]:
    """Who knows them: Redis, or a service on the same one."""
    if request.param == "store":
        yield store
    else:
        async with SessionClient(f"http://127.0.0.1:{service.port}", timeout_seconds=5) as client:
            yield client


NOBODY = [False, "", "", []]


@pytest.mark.parametrize("make", [application, fast_application], ids=["Starlette", "FastAPI"])
async def test_who_is_asking(
    sessions: Sessions, store: SessionStore, make: Callable[[Sessions], Starlette]
) -> None:
    app = make(sessions)
    sesion = await store.create(7, "portátil")
    token = sesion.Token_Sesion
    for headers in [("x-auth-token", token)], [("Authorization", f"bearer {token}")]:
        reply = await asgi.request(app, "GET", "/", headers)
        assert reply.json() == [True, "7", "7", ["authenticated"]]
    for headers in (
        [],
        [("x-auth-token", token[:-1])],
        [("x-auth-token", tokens.make(7))],
        [("x-auth-token", token), ("x-auth-token", token)],
        [("Authorization", f"Basic {token}")],
    ):
        assert (await asgi.request(app, "GET", "/", headers)).json() == NOBODY
    await store.update(sesion._replace(Estado_Sesion=0))
    assert (await asgi.request(app, "GET", "/", [("x-auth-token", token)])).json() == NOBODY
    await store.update(sesion)
    assert (await store.end(token, token)) == 1
    assert (await asgi.request(app, "GET", "/", [("x-auth-token", token)])).json() == NOBODY


async def test_the_session_is_whole(sessions: Sessions, store: SessionStore) -> None:
    made = await store.create(7, "portátil ☃")
    found = await sessions.find(made.Token_Sesion)
    assert found is not None
    slid = found.Ultima_Actividad - made.Ultima_Actividad  # the clock may have gone on a second
    assert 0 <= slid <= 5
    assert found == made._replace(
        Ultima_Actividad=made.Ultima_Actividad + slid,
        Fecha_Expiracion=made.Fecha_Expiracion + slid,
    )
    assert await sessions.find(tokens.make(7)) is None


async def test_a_websocket(sessions: Sessions, store: SessionStore) -> None:
    token = (await store.create(7, "d")).Token_Sesion
    assert await open_websocket(application(sessions), token) == [
        "websocket.accept",
        "7",
        "websocket.close",
    ]
    async with SessionStore.from_url(UNREACHABLE) as gone:
        assert await open_websocket(application(gone), token) == ["websocket.close"]


async def open_websocket(app: Starlette, token: str) -> list[str]:
    sent: list[str] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message.get("text") or message["type"])

    scope = {
        "type": "websocket",
        "path": "/ws",
        "raw_path": b"/ws",
        "root_path": "",
        "query_string": b"",
        "subprotocols": [],
        "headers": [(b"x-auth-token", token.encode())],
    }
    await app(scope, receive, send)
    return sent


async def test_many_at_once_are_one_call(store: SessionStore, redis: "Redis") -> None:
    app = application(store)
    asked = [("x-auth-token", (await store.create(user, "d")).Token_Sesion) for user in range(50)]
    redis.config_resetstat()
    replies = await asyncio.gather(*(asgi.request(app, "GET", "/", [one]) for one in asked))
    assert [reply.json()[1] for reply in replies] == [str(user) for user in range(50)]
    assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] == 1


# Whoever cannot be asked


async def test_redis_is_not_there() -> None:
    async with SessionStore.from_url(UNREACHABLE) as store:
        reply = await asgi.request(
            application(store), "GET", "/", [("x-auth-token", tokens.make(7))]
        )
        assert reply.status == 503
        assert reply.headers["retry-after"] == "1"
        assert (await asgi.request(application(store), "GET", "/")).json() == NOBODY


ANOTHERS = Sesion(4096, 7, "ses_eQ" + "A" * 43, 1, 2, 1, 1, "x").to_json()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 302 x\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n\xff",
        b"x\r\n\r\n",
        # A proxy's, and another's session.
        b'HTTP/1.1 401 x\r\nwww-authenticate: Basic realm="p"\r\ncontent-length: 0\r\n\r\n',
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(ANOTHERS), ANOTHERS),
        None,
    ],
)
async def test_no_service_is_there(answer: bytes | None) -> None:
    """Nobody's session is the answer of something else, or of none in time."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()
        await writer.wait_closed()

    token = tokens.make(7)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, SessionClient(url, timeout_seconds=0.3) as client:
        with pytest.raises(StoreUnavailable) as raised:
            await client.find(token)
        assert token not in str(raised.value)
    await asyncio.sleep(0.02)
    async with SessionClient("http://127.0.0.1:1") as client:
        with pytest.raises(StoreUnavailable):
            await client.find(token)


async def test_client_sends_nothing_but_a_token() -> None:
    """No service is there to ask."""
    value: Any
    async with SessionClient("http://127.0.0.1:1") as client:
        for value in BAD_TOKENS:
            assert await client.find(value) is None


async def test_a_service_that_trickles() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            for byte in b"HTTP/1.1 200 OK\r\n" * 100:
                if writer.is_closing():  # uvloop's write() would be a RuntimeError
                    break
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, asyncio.timeout(2):
        client = SessionClient(url, timeout_seconds=0.3)
        with pytest.raises(StoreUnavailable):
            await client.find(tokens.make(7))
        await client.aclose()
        with pytest.raises(StoreUnavailable):
            await client.find(tokens.make(7))
    await asyncio.sleep(0.1)


# Two nodes


@contextmanager
def node(redis_url: str) -> Iterator[str]:
    """The example, as a process; its URL."""
    command = ["-m", "uvicorn", "--app-dir", str(DOCS / "examples"), "node:app", "--port", "0"]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            stderr=log,
            stdout=log,
            env=os.environ | {"SESIONES_REDIS_URL": redis_url},
        )
        try:

            def url() -> str | None:
                match = re.search(r"running on (http://\S+:\d+)", Path(log.name).read_text())
                return match and match[1]

            assert comes_true(lambda: url() is not None, 20), Path(log.name).read_text()
            yield str(url())
        finally:
            process.terminate()
            process.wait(20)


def ask(url: str, token: str | None = None, form: dict[str, str] | None = None) -> tuple[int, Any]:
    headers = {"user-agent": "prueba"} | ({"x-auth-token": token} if token else {})
    body = None if form is None else urlencode(form).encode()
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            text = response.read()
            return response.status, orjson.loads(text) if text else None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None


def test_two_nodes_share_their_sessions(redis_server: RedisServer, redis: "Redis") -> None:
    with node(redis_server.url) as one, node(redis_server.url) as two:
        assert ask(f"{one}/login", form={"usuario": "7", "contrasena": "x"}) == (401, None)
        status, made = ask(f"{one}/login", form={"usuario": "7", "contrasena": "secreto"})
        assert status == 200
        token = made["token"]
        for url in one, two:
            assert ask(f"{url}/yo") == (401, None)
            assert ask(f"{url}/yo", token) == (200, {"usuario": 7, "dispositivo": "prueba"})
        assert ask(f"{two}/logout", token, form={}) == (204, None)
        for url in one, two:
            assert ask(f"{url}/yo", token) == (401, None)
