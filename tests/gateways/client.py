"""The client's side of a gateway: single requests, raw ones, and a steady load."""

import base64
import http.client
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from tests.harness.service import Reply, read_reply

Headers = Iterable[tuple[str, str]]
Body = bytes | Iterable[bytes] | None


def exchange(
    connection: http.client.HTTPConnection,
    headers: Headers = (),
    method: str = "GET",
    target: str = "/",
    body: Body = None,
) -> Reply:
    """One request on a connection that stays open. A body that is not bytes goes in chunks."""
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    chunked = body is not None and not isinstance(body, bytes)
    if chunked:
        connection.putheader("Transfer-Encoding", "chunked")
    elif method in ("POST", "PUT", "PATCH"):
        connection.putheader("Content-Length", str(len(body or b"")))  # type: ignore[arg-type]
    with suppress(BrokenPipeError, ConnectionResetError):  # it answers before the end of the body
        connection.endheaders(body, encode_chunked=chunked)
    return read_reply(connection)


def raw(port: int, data: bytes) -> int:
    """The status that comes back for the bytes, the first one; 0 when none does."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(data)
        received = bytearray()
        with suppress(ConnectionResetError):
            while b"\r\n" not in received and (chunk := connection.recv(65536)):
                received += chunk
    return int(received.split(b" ", 2)[1]) if received else 0


@contextmanager
def load(port: int, headers: Headers, clients: int) -> Iterator[list[tuple[int, float]]]:
    """Clients that ask one request after the other, each on a connection of its own: the statuses
    (0: no answer) and seconds so far."""
    answers: list[tuple[int, float]] = []
    stop = threading.Event()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        while not stop.is_set():
            begun = time.monotonic()
            try:
                status = exchange(connection, headers).status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            answers.append((status, time.monotonic() - begun))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class EventStream:
    """A client of server-sent events."""

    def __init__(self, port: int, headers: Headers, target: str = "/events") -> None:
        self.opened = time.monotonic()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        self._connection.request("GET", target, headers=dict(headers))
        self._response = self._connection.getresponse()
        self.status = self._response.status

    def read(self) -> float:
        """When the application sent the next event that has not been read."""
        line = self._response.readline()
        while line.strip() == b"":
            assert line, "the stream has ended"
            line = self._response.readline()
        return float(line.removeprefix(b"data: "))

    def close(self) -> None:
        self._connection.close()


class WebSocket:
    """A client of a WebSocket (RFC 6455), for short texts."""

    def __init__(self, port: int, headers: Headers, target: str = "/") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {target} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
            *(f"{name}: {value}" for name, value in headers),
        ]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._file = self._socket.makefile("rb")
        self.status = int(self._file.readline().split(b" ", 2)[1])
        while self._file.readline() not in (b"\r\n", b""):
            pass

    def ask(self, text: str) -> str:
        """The answer to a text."""
        data = text.encode()
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
        self._socket.sendall(bytes([0x81, 0x80 | len(data)]) + mask + masked)
        first, length = self._file.read(2)
        assert first == 0x81, first
        return self._file.read(length).decode()

    def close(self) -> None:
        self._file.close()
        self._socket.close()
