"""For API nodes on Python: the store as it is documented, Starlette's authentication, a service
over HTTP, and two nodes that share their sessions."""

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
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
from scripts.redis_server import RedisServer
from sesiones import Sesion, SessionStore, StoreUnavailable, tokens
from sesiones.authentication import SessionBackend, Sessions, on_error
from sesiones.client import SessionClient
from sesiones.settings import Settings
from tests import asgi
from tests.service import Service, comes_true

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[1] / "docs"
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
    assert await sessions.find(made.Token_Sesion) == made
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
