"""The HTTP protocol in this event loop, on a store and an application that are stubs."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from sesiones.http.fast_check import FastCheckProtocol
from sesiones.http.traffic import Traffic
from sesiones.metrics import Metrics
from sesiones.sesion import Sesion

HOST = b"Host: localhost\r\n"
TOKEN = b"ses_eQz07k5PgmNH6t8HHwcCd5EjWpENcRm0S9HRDtcfiSpz0"
SESION = Sesion(4096, 7, TOKEN.decode(), 1, 2, 1, 1, "x")


def plain(target: bytes, token: bytes, method: bytes = b"GET") -> bytes:
    """A plain check."""
    return b"%b %b HTTP/1.1\r\n%bX-Auth-Token: %b\r\n\r\n" % (method, target, HOST, token)


class StubServer:
    """A server in this event loop. Its fast checks get ``answer``, or wait in ``waiting`` while
    ``hold`` is set; its application, which gets everything else, answers 418 with ``body``."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []
        self.waiting: list[Callable[[Sesion | Exception | None], None]] = []
        self.answer: Sesion | Exception | None = None
        self.hold = False
        self.body = b""
        self.metrics = Metrics()
        self.server: Any = None

    def check(self, token: str, done: Callable[[Sesion | Exception | None], None]) -> None:
        self.asked.append(token)
        if self.hold:
            self.waiting.append(done)
        else:
            asyncio.get_running_loop().call_soon(done, self.answer)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            scope["state"]["check"] = self.check
            scope["state"]["traffic"] = Traffic(self.metrics, access_log=False)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["method"] == "POST":
            await receive()
        headers = [(b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": 418, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})

    async def accepted(self) -> tuple[asyncio.StreamWriter, FastCheckProtocol]:
        """The only connection: the client's end and the server's."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        await until(lambda: bool(self.server.server_state.connections))
        (connection,) = self.server.server_state.connections
        return writer, connection

    async def send(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        writer.write_eof()
        received = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return received


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class _Server(uvicorn.Server):
    """Ends at once when ``ended`` is set. Otherwise uvicorn would need 0.2 s for it, in hundreds of
    tests."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()

    async def main_loop(self) -> None:
        ticks = itertools.count()
        while not (self.ended.is_set() or await self.on_tick(next(ticks))):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), 0.1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if not self.ended.is_set():  # a test stops the server as a signal does
            await super().shutdown(sockets)
            return
        for server in self.servers:
            server.close()
        for connection in [*self.server_state.connections]:
            connection.transport.abort()
        await self.lifespan.shutdown()


@asynccontextmanager
async def stub_server(**options: Any) -> AsyncIterator[StubServer]:
    stub = StubServer()
    config = uvicorn.Config(
        stub.app,
        port=0,
        http=FastCheckProtocol,
        ws="none",
        interface="asgi3",
        log_config=None,
        access_log=False,
        **options,
    )
    stub.server = _Server(config)
    stub.server.capture_signals = nullcontext
    task = asyncio.create_task(stub.server.serve())
    await until(lambda: stub.server.started)
    stub.port = stub.server.servers[0].sockets[0].getsockname()[1]
    try:
        yield stub
    finally:
        stub.server.ended.set()
        await task
