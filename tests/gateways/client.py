"""The client's side of a gateway: single requests, raw ones, and a steady load."""

import http.client
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
