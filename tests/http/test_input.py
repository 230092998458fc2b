"""The states of the input: the table in sesiones/http/protocol.py, in process."""

import asyncio
from collections.abc import Callable

import pytest

from sesiones.http.protocol import BODY, DISCARD, HEAD, IDLE, HttpProtocol, Input
from tests.harness.stub_server import HOST, TOKEN, plain, stub_server, until

pytestmark = pytest.mark.anyio

LINE = b"POST /other HTTP/1.1\r\n"
LENGTH = LINE + HOST + b"Content-Length: 5\r\n\r\n"
CHUNKED = LINE + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"


@pytest.mark.parametrize(
    ("sent", "state"),
    [
        (b"", IDLE),
        (b"\r\n", IDLE),
        (b"\r\n\r\n\r\n", IDLE),
        (b"P", HEAD),
        (b"\r\nP", HEAD),
        (LINE, HEAD),
        (LENGTH[:-1], HEAD),
        (LENGTH, BODY),
        (LENGTH + b"1234", BODY),
        (LENGTH + b"12345", IDLE),
        (LENGTH + b"12345P", HEAD),
        (LENGTH + b"12345" + LENGTH, BODY),
        (CHUNKED, BODY),
        (CHUNKED + b"4\r\n\r\n\r\n", BODY),  # a blank line of the content
        (CHUNKED + b"4\r\n\r\n\r\n\r\n0\r\nx: y\r\n", BODY),
        (CHUNKED + b"4\r\n\r\n\r\n\r\n0\r\nx: y\r\n\r\n", IDLE),
        (CHUNKED + b"0\r\n\r\n" + LENGTH, BODY),
        (plain(b"/other", TOKEN), IDLE),
        (plain(b"/other", TOKEN) + b"GET", HEAD),
        (plain(b"/sesiones/self", TOKEN), IDLE),
        (LENGTH.replace(b"Content", UPGRADE + b"Content"), BODY),
        (LENGTH.replace(b"Content", UPGRADE + b"Content") + b"12345", IDLE),
        (b"\x00", DISCARD),
        (LINE.replace(b"HTTP", b"RTSP"), DISCARD),
        (LINE + b"\r\n", DISCARD),
        (LINE + b"x: " + b"a" * 16_384, DISCARD),
        (CHUNKED + b"z", DISCARD),
        (CHUNKED + b"1;" + b"a" * 131_072, DISCARD),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1_000_000])
async def test_input_has_the_state_that_the_bytes_lead_to(
    sent: bytes, state: Input, size: int
) -> None:
    async with stub_server() as served:
        writer, connection = await served.accepted()
        served.hold = True
        # The requests of one connection wait for each other: so each piece is one of its own.
        for at in range(0, len(sent), max(size, len(sent) // 200)):
            connection.data_received(sent[at : at + max(size, len(sent) // 200)])
            await settle(connection)
        assert connection._input is state
        writer.transport.abort()
        for done in served.waiting:
            done(None)


@pytest.mark.parametrize(
    "first", [CHUNKED + b"0\r\n\r\n", CHUNKED + b"0\r\nx: y\r\n\r\n", plain(b"/other", TOKEN)]
)
@pytest.mark.parametrize("together", [1, 2, 3, 4])
async def test_blank_line_that_comes_byte_by_byte_ends_a_message(
    first: bytes, together: int
) -> None:
    """``together``: how many of its last bytes come with the message behind it."""
    async with stub_server() as served:
        writer, connection = await served.accepted()
        for byte in first[:-together]:
            connection.data_received(bytes([byte]))
        connection.data_received(first[-together:] + LENGTH)
        await settle(connection)
        assert connection._input is BODY
        writer.transport.abort()


async def settle(connection: HttpProtocol) -> None:
    """Until what has come is parsed."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("begun", [LENGTH + b"1234", CHUNKED + b"4\r\n12"])
async def test_body_that_the_client_cuts_short_is_discarded(begun: bytes) -> None:
    async with stub_server() as served:
        assert (await served.send(begun)).startswith(b"HTTP/1.1 400 ")


async def test_keep_alive_does_not_cut_the_time_to_read_an_error_short() -> None:
    """The connection is left open for half a second: closing on unread bytes would lose the
    error."""
    async with stub_server() as served:
        writer, connection = await served.accepted()
        connection.data_received(b"\x00")
        assert connection._input is DISCARD
        connection._last_active -= connection.timeout_keep_alive
        connection.timeout_keep_alive_handler()
        assert not connection.transport.is_closing()
        await until(connection.transport.is_closing)
        writer.transport.abort()


async def test_message_that_does_not_begin_with_a_piece_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Were a cut ever wrong, no request would get past the checks of its raw head.
    whole: Callable[[HttpProtocol, bytes, int], int] = lambda _, data, __: len(data)  # noqa: E731
    monkeypatch.setattr(HttpProtocol, "_piece_end", whole)
    async with stub_server() as served:
        for first in LENGTH + b"12345", CHUNKED + b"0\r\n\r\n", plain(b"/other", TOKEN):
            received = await served.send(first + plain(b"/other", TOKEN))
            assert received.count(b" 418 ") == 1
            assert received.count(b"HTTP/1.1 400 ") == 1
