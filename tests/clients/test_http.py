"""SessionClient where no service answers as it should."""

import asyncio
from contextlib import suppress

import pytest

from sesiones import Sesion, StoreUnavailable, tokens
from sesiones.clients.http import SessionClient

pytestmark = pytest.mark.anyio

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
async def test_reply_of_something_else_is_no_session(answer: bytes | None) -> None:
    """Nor is no reply in time, or no connection."""

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
