"""A TCP port of loopback before a server, which passes bytes on or fails as it is told to.

It runs in threads, so that synchronous and asynchronous tests use it alike.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Behaviour = Callable[[socket.socket], None]
"""Serves one accepted connection, which is closed when the function returns."""

Filter = Callable[[bytes], bytes | None]
"""What is passed on in place of a piece that the server has sent; None closes the connection."""


class Relay:
    """``target``: the port, or the path of the unix socket, to which new connections lead.
    ``new_filter``: makes the filter of each connection's replies."""

    def __init__(self, target: int | Path, new_filter: Callable[[], Filter] | None = None) -> None:
        self.target = target
        self.connections = 0
        """How many connections were accepted so far."""
        self._new_filter = new_filter or (lambda: lambda piece: piece)
        self._behave: Behaviour = self.pass_on
        self._open: set[socket.socket] = set()
        self._swallowed: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()
        self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    def stall(self) -> None:
        """Hold everything back, in both directions, until resume(). No connection ends."""
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def swallow(self) -> None:
        """The connections that are open now lose all bytes from now on, in both directions, and do
        not end: as behind a firewall that has forgotten them."""
        self._swallowed.update(self._open)

    def become(self, behave: Behaviour) -> None:
        """Cut the open connections, and serve new ones so. ``pass_on`` is the normal behaviour."""
        self._behave = behave
        self._cut()

    def pass_on(self, client: socket.socket, target: int | Path | None = None) -> None:
        """The normal behaviour of a connection; with ``target``, to there."""
        to = self.target if target is None else target
        with socket.socket(socket.AF_INET if isinstance(to, int) else socket.AF_UNIX) as server:
            server.connect(("127.0.0.1", to) if isinstance(to, int) else str(to))
            arguments = server, client, client, self._new_filter()
            back = threading.Thread(target=self._pump, args=arguments, daemon=True)
            back.start()
            self._pump(client, server, client, lambda piece: piece)
            _shut_down(server)
            back.join()

    @contextmanager
    def full_backlog(self) -> Iterator[None]:
        """No connection is accepted, and the queue of those that wait is full."""
        self._close_listener()
        self._cut()
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen(0)
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", self.port))
            yield
        self._listen(self.port)

    def close(self) -> None:
        self._close_listener()
        self.swallow()
        self._flows.set()
        self._cut()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _close_listener(self) -> None:
        _shut_down(self._listener)  # wakes the thread in accept(), which close() does not
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.connections += 1
                self._open.add(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            self._behave(client)
        self._open.discard(client)
        self._swallowed.discard(client)
        _shut_down(client)
        client.close()

    def _cut(self) -> None:
        for client in list(self._open):
            self._open.discard(client)
            _shut_down(client)

    def _pump(
        self, source: socket.socket, sink: socket.socket, client: socket.socket, passed: Filter
    ) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                self._flows.wait()
                if client not in self._swallowed:
                    changed = passed(piece)
                    if changed is None:
                        break
                    sink.sendall(changed)
        self._flows.wait()
        if client not in self._swallowed:
            _shut_down(sink)


def _shut_down(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
