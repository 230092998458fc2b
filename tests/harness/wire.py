"""HTTP/1.1 by hand: requests as bytes, and replies from the bytes that come back."""

import re
import socket
import time

import pytest

from tests.harness.api import check_problem
from tests.harness.service import Reply, Service
from tests.harness.stores import KEY

HOST = b"Host: sesiones\r\n"
JSON = b"Content-Type: application/json\r\n"
CREATION = b'{"ID_Usuario": 7, "Dispositivo": "d"}'
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(CREATION)
CHUNKED = b"Transfer-Encoding: chunked\r\n"

CLOSE = b"Connection: close\r\n"
KEEP_ALIVE = b"Connection: keep-alive\r\n"
EXPECT = b"Expect: 100-continue\r\n"


def post(*fields: bytes, body: bytes = b"", target: bytes = b"/sesiones") -> bytes:
    """A POST with the service key."""
    authorization = b"Authorization: Bearer %b\r\n" % KEY.encode()
    head = b"POST %b HTTP/1.1\r\n%b%b%b" % (target, HOST, authorization, JSON)
    return head + b"".join(fields) + b"\r\n" + body


def check(token: bytes, *fields: bytes, line: bytes = b"GET /sesiones/verificar HTTP/1.1") -> bytes:
    """A request with the token; by default the one that every gateway sends."""
    return b"%b\r\n%bx-auth-token: %b\r\n%b\r\n" % (line, HOST, token, b"".join(fields))


def read(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection, and that it does end."""
    received = bytearray()
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pytest.fail(f"reset after {bytes(received)!r}")
    return bytes(received)


def receive(connection: socket.socket, count: int = 1) -> list[Reply]:
    """The next replies on a connection that stays open."""
    received = b""
    while True:
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk
        try:
            replies = parse(received)
        except Incomplete:
            continue
        if len(replies) >= count:
            assert len(replies) == count
            return replies


def talk(service: Service, *parts: bytes, gap: float = 0.03, half_close: bool = False) -> bytes:
    """What comes back for the parts, sent one by one, until the service closes."""
    with service.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(4)
        for number, part in enumerate(parts):
            if number:
                time.sleep(gap)
            connection.sendall(part)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return read(connection)


class Incomplete(AssertionError):
    """The bytes end within a reply."""


def parse(received: bytes, *, heads: tuple[int, ...] = ()) -> list[Reply]:
    """The replies; ``heads`` are the numbers of those to a HEAD. Everything must be framed."""
    replies: list[Reply] = []
    while received:
        head, separator, received = received.partition(b"\r\n\r\n")
        if not separator:
            raise Incomplete(head)
        line, *fields = head.split(b"\r\n")
        match = re.fullmatch(rb"HTTP/1\.1 (\d{3}) [ -~]*", line)
        assert match, line
        status = int(match[1])
        if status == 100:
            assert not fields
            replies.append(Reply(status, {}, b""))
            continue
        pairs = [field.decode("latin-1").split(": ", 1) for field in fields]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), pairs
        assert headers["cache-control"] == "no-store"
        length = 0 if len(replies) in heads else int(headers["content-length"])
        if len(received) < length:
            raise Incomplete(received)
        replies.append(Reply(status, headers, received[:length]))
        received = received[length:]
    return replies


def statuses(received: bytes) -> list[int]:
    return [reply.status for reply in parse(received)]


def check_refusal(received: bytes, status: int) -> None:
    """One problem, and the connection is closed."""
    (reply,) = parse(received)
    check_problem(reply, status)
    assert reply.headers["connection"] == "close"


def chunks(body: bytes, size: int, extension: bytes = b"") -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    coded = [b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces]
    return b"".join(coded) + b"0%b\r\n\r\n" % extension
