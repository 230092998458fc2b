"""An asynchronous client of the service: requests over connections that are kept alive."""

import asyncio
from collections import deque
from typing import cast

import httptools
import orjson

from tests.harness.service import Reply

REPLY_SECONDS = 5.0
"""A request that has no answer by then counts as one that hangs."""

NO_REPLY = Reply(0, {}, b"")
"""The connection ended, or the answer did not come in time."""
NOT_SENT = Reply(0, {}, b"")
"""No connection could be opened."""


class _Connection(asyncio.Protocol):
    """One request at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._reply: asyncio.Future[Reply] | None = None

    async def ask(self, request: bytes) -> Reply:
        if self.transport.is_closing():
            return NO_REPLY
        self._reply = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body = b""
        self.transport.write(request)
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                return await self._reply
        except TimeoutError:
            self.transport.abort()
            return NO_REPLY

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._answer(NO_REPLY)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.transport.close()
        self._answer(Reply(self._parser.get_status_code(), self._headers, self._body))

    def _answer(self, reply: Reply) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(reply)


class Client:
    """Any number of requests at once to a port of loopback. The connections are used in turn.

    ``spare``: how many of them are kept idle, as gateways do; 0: as many as were needed at once.
    """

    def __init__(self, port: int, spare: int = 0) -> None:
        self.port = port
        self._spare = spare
        self._idle: deque[_Connection] = deque()

    async def ask(self, method: str, path: str, token: str = "", body: object = None) -> Reply:
        """``body`` is sent as JSON."""
        content = b"" if body is None else orjson.dumps(body)
        head = f"{method} {path} HTTP/1.1\r\nHost: sesiones\r\nContent-Length: {len(content)}\r\n"
        head += f"X-Auth-Token: {token}\r\n" if token else ""
        head += "Content-Type: application/json\r\n" if content else ""
        while self._idle and self._idle[0].transport.is_closing():
            self._idle.popleft()
        try:
            connection = (
                self._idle.popleft() if len(self._idle) > self._spare else await self._open()
            )
        except OSError:
            return NOT_SENT
        reply = await connection.ask(f"{head}\r\n".encode() + content)
        if 0 < self._spare < len(self._idle):
            connection.transport.close()
        elif not connection.transport.is_closing():
            self._idle.append(connection)
        return reply

    async def create(self, ID_Usuario: int, Dispositivo: str = "laptop") -> str:
        """A new session's token. A 503 is asked again."""
        body = {"ID_Usuario": ID_Usuario, "Dispositivo": Dispositivo}
        while (reply := await self.ask("POST", "/sesiones", body=body)).status == 503:
            pass
        assert reply.status == 201, reply
        return str(reply.json()["Token_Sesion"])

    async def check(self, token: str) -> int:
        """The status."""
        return (await self.ask("GET", "/sesiones/self", token)).status

    async def log_out(self, token: str) -> int:
        """The status."""
        path = f"/sesiones/logout?Token_Sesion={token}"
        return (await self.ask("DELETE", path, token)).status

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(_Connection, "127.0.0.1", self.port))[1]

    def close(self) -> None:
        for connection in self._idle:
            connection.transport.abort()
        self._idle.clear()
