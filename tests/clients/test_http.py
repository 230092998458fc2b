"""SessionClient where no service answers as it should, and what it sends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from redis import Redis

from sesiones import Sesion, StoreUnavailable, tokens
from sesiones.clients import http
from sesiones.clients.http import CONNECTIONS_MAX, SessionClient
from sesiones.sesion import UserSession
from tests.harness.faults import hung
from tests.harness.service import Service

pytestmark = pytest.mark.anyio

TOKEN = "ses_eQ" + "B" * 43
KEY = "s" * 32
SESION = Sesion(4096, 7, TOKEN, 1, 2, 1, 1, "d")
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "find": (TOKEN,),
    "end": (TOKEN, TOKEN),
    "end_all": (TOKEN, TOKEN),
    "end_others": (TOKEN,),
    "end_one": (TOKEN, 1),
    "list_sessions": (TOKEN,),
    "create": (7, "d"),
    "update": (SESION,),
    "sessions": (7,),
    "end_user": (7,),
    "revoke": (TOKEN,),
}
OF_THE_OWNER = [*ARGUMENTS][:6]
"""The methods that authenticate by a token; the others, by the service key."""


def response(status: int, body: bytes = b"", *headers: bytes) -> bytes:
    length = b"content-length: %d" % len(body)
    head = [b"HTTP/1.1 %d x" % status, b"connection: close", length, *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


JSON = b"content-type: application/json"
PROBLEM = b"content-type: application/problem+json"
ANOTHERS = Sesion(4096, 7, "ses_eQ" + "A" * 43, 1, 2, 1, 1, "x").to_json()
LISTED = UserSession(4096, 7, None, 1, 2, 1, 1, "x", Actual=True).to_dict()
STRANGE = [
    None,
    b"",
    b"x\r\n\r\n",
    response(503),
    response(302, b"", b"location: /"),
    response(204),
    *(response(200, body, JSON) for body in (b"{}", b"[]", b"[1]", b"7", b"null", b"\xff", b"<p>")),
    response(200, b'{"Sesiones":7,"Sesiones_Eliminadas":true}', JSON),
    response(200, b'{"Sesiones":[{}],"Sesiones_Eliminadas":-1}', JSON),
    response(200, b'{"Sesiones":[7],"Sesiones_Eliminadas":"1"}', JSON),
    *(
        response(200, orjson.dumps({"Sesiones": [LISTED | changed]}), JSON)
        for changed in ({"ID_Sesion": "1"}, {"Dispositivo": ""}, {"Actual": 1})
    ),
    response(200, ANOTHERS, JSON),
    response(201, ANOTHERS, JSON),
    response(200, ANOTHERS[:-1], JSON),
    # A proxy's.
    response(401, b"", b'www-authenticate: Basic realm="p"'),
    response(401, b"", PROBLEM),
    response(401, b"", PROBLEM, b'www-authenticate: Basic realm="p"'),
    *(response(status, b"<p>") for status in (400, 403, 404, 405, 409, 413, 422, 500, 502)),
    *(response(status, b"", PROBLEM) for status in (400, 405, 413, 422, 429, 500, 502, 503)),
    *(response(409, body, PROBLEM) for body in (b"", b"{}", b'{"Sesiones":7,"errores":7}')),
]
"""Responses that are no answer to any method; None is none in time."""


@dataclass
class Answers:
    """A server that gives every request the same answer."""

    answer: bytes | None
    url: str = ""
    received: list[bytes] = field(default_factory=list)
    """The heads of the requests."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.received.append(await reader.readuntil(b"\r\n\r\n"))
        if self.answer is None:
            await reader.read()
        else:
            writer.write(self.answer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[Answers]:
    answers = Answers(answer)
    server = await asyncio.start_server(answers.serve, "127.0.0.1", 0)
    answers.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield answers
    await asyncio.sleep(0.02)


@pytest.mark.parametrize("method", ARGUMENTS)
async def test_reply_of_something_else_is_unavailable(method: str) -> None:
    """Nor is no reply in time, or no connection, an answer. Nothing is asked twice."""
    async with (
        answering(None) as server,
        SessionClient(server.url, service_key=KEY, timeout_seconds=0.3) as client,
    ):
        for answer in STRANGE:
            server.answer = answer
            server.received.clear()
            with pytest.raises(StoreUnavailable) as raised:
                await getattr(client, method)(*ARGUMENTS[method])
            assert TOKEN not in str(raised.value)
            assert KEY not in str(raised.value)
            assert len(server.received) == 1
    async with SessionClient("http://127.0.0.1:1", service_key=KEY) as client:
        with pytest.raises(StoreUnavailable):
            await getattr(client, method)(*ARGUMENTS[method])


@pytest.mark.parametrize("method", ARGUMENTS)
async def test_request_has_one_credential_and_no_token_in_its_target(method: str) -> None:
    async with (
        answering(response(503)) as server,
        SessionClient(server.url, service_key=KEY) as client,
    ):
        with pytest.raises(StoreUnavailable):
            await getattr(client, method)(*ARGUMENTS[method])
    line, *headers = server.received[0].lower().split(b"\r\n")
    assert b"ses_" not in line
    credentials = [each for each in headers if each.startswith((b"x-auth-token", b"authorization"))]
    assert credentials == [
        f"x-auth-token: {TOKEN}".lower().encode()
        if method in OF_THE_OWNER
        else f"authorization: bearer {KEY}".encode()
    ]


@pytest.mark.parametrize("key", [None, "s" * 32])
async def test_service_key_that_is_not_the_services_is_unavailable(
    service: Service, redis: "Redis", key: str | None
) -> None:
    url = f"http://127.0.0.1:{service.port}"
    async with SessionClient(url, service_key=key, timeout_seconds=5) as client:
        for method, arguments in ARGUMENTS.items():
            if method not in OF_THE_OWNER:
                with pytest.raises(StoreUnavailable, match="401"):
                    await getattr(client, method)(*arguments)
    assert redis.dbsize() == 0


@pytest.mark.parametrize("key", ["", "s" * 31, f"{KEY},{KEY}", f"{KEY} ", f"{KEY}\n", f"{KEY}ñ"])
def test_bad_service_key_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(ValueError, match="service_key") as raised:
        SessionClient("http://127.0.0.1:1", service_key=key)
    assert not key or key not in str(raised.value)


async def test_reply_that_trickles_is_cut_at_the_deadline() -> None:
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


async def test_calls_that_a_hung_service_leaves_unanswered_take_no_place_of_later_ones(
    service: Service,
) -> None:
    """More of them than a pool of httpx has connections: it would have none left."""
    async with SessionClient(f"http://127.0.0.1:{service.port}", timeout_seconds=0.5) as client:
        with hung(service):
            calls = [client.find(TOKEN) for _ in range(3 * CONNECTIONS_MAX)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        async with asyncio.timeout(10):
            while True:
                with suppress(StoreUnavailable):
                    assert await client.find(TOKEN) is None
                    break


async def test_call_that_is_cancelled_at_any_moment_leaves_no_connection() -> None:
    connected = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        with suppress(ConnectionError):
            await reader.read()  # until the client closes
        writer.close()
        connected -= 1

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, SessionClient(url, timeout_seconds=10) as client:
        for turns in range(60):
            call = asyncio.ensure_future(client.find(TOKEN))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
        async with asyncio.timeout(5):
            while connected:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_connections_of_a_burst_are_closed_by_later_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "IDLE_SECONDS_MAX", 0.0)
    connected = 0
    together = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        if connected == 20:
            together.set()
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                await together.wait()
                writer.write(refusal)
        writer.close()
        connected -= 1

    realm = b'www-authenticate: Bearer realm="sesiones"'
    refusal = response(401, b"", PROBLEM, realm).replace(b"connection: close\r\n", b"")
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, SessionClient(url, timeout_seconds=10) as client:
        await asyncio.gather(*(client.find(TOKEN) for _ in range(20)))
        async with asyncio.timeout(10):
            while connected > 1:
                assert await client.find(TOKEN) is None
