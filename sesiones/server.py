"""Serving: the listening socket, uvicorn, start and stop."""

import asyncio
import functools
import gc
import ipaddress
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import uvicorn
from uvicorn.supervisors import multiprocess

from sesiones import logs
from sesiones.app import create_app
from sesiones.lane import FastLane
from sesiones.metrics import Rows
from sesiones.protocol import SEND_SECONDS, HttpProtocol
from sesiones.settings import Settings, SettingsError

logger = logging.getLogger("sesiones.server")

KEEP_ALIVE_SECONDS = 75
"""Longer than gateways keep idle connections, so that they are the ones to close."""

STOP_SECONDS = 8
"""What requests in flight may take after SIGTERM."""


class ListenError(Exception):
    """The address cannot be listened on; the message is one line."""


def serve(settings: Settings, listener: socket.socket) -> None:
    """Serve on the socket until SIGTERM or SIGINT: then stop accepting, answer what is in flight
    or on its way and close Redis.

    Without a service key POST and PUT are open: listen() saw to it that only this machine is
    let in.
    """
    rows = Rows() if settings.workers > 1 else None
    config = uvicorn.Config(
        functools.partial(create_app, settings, open_without_key=True, rows=rows),
        factory=True,
        http=_protocol(settings),
        ws="none",
        workers=settings.workers,
        log_config=logs.config(settings.log_format),
        access_log=settings.access_log,
        server_header=False,
        proxy_headers=settings.forwarded_allow_ips is not None,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    if settings.workers > 1:
        supervisor = _Supervisor(config, [listener])
        logger.info("listening on %s", listener.getsockname())
        supervisor.run()
        return
    server = _Server(config)
    # uvicorn raises the signal that stopped it again once it is done: for us, it ended well.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    logger.info("listening on %s", listener.getsockname())
    server.run([listener])


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Full collections are pauses: of 20 ms for what there is now, which stays, and of 50 ms for
        # a thousand slow bodies. Hardly any garbage needs one.
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], 100)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # What has connected but was not accepted yet would be reset with the listening socket.
        accepted = [connection for listener in sockets or () for connection in _waiting(listener)]
        for closing in *self.servers, *(sockets or ()):
            closing.close()
        for connection in accepted:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(0)  # until what uvloop has just accepted is known as a connection
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        protocol: type[asyncio.Protocol] = self.config.http_protocol_class
        return protocol(
            config=self.config,  # type: ignore[call-arg]
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )


def _waiting(listener: socket.socket) -> Iterator[socket.socket]:
    with suppress(OSError):  # a BlockingIOError when there is none
        while True:
            yield listener.accept()[0]


class _Worker(multiprocess.Process):
    @property
    def server(self) -> uvicorn.Server:
        if self._server is None:
            self._server = _Server(self.config)
        return self._server


multiprocess.Process = _Worker  # type: ignore[misc]


class _Supervisor(multiprocess.Multiprocess):
    def keep_subprocess_alive(self) -> None:
        for process in self.processes:
            # Of a worker that ends while it is asked whether it lives, the parent would wait for
            # an answer for 5 s: it holds the other end of the pipe, too.
            process.child_conn.close()
        super().keep_subprocess_alive()

    def terminate_all(self) -> None:
        # Else new connections wait here while the workers finish, and nobody will serve them.
        for listener in self.sockets:
            listener.close()
        super().terminate_all()

    def handle_hup(self) -> None:
        # Settings do not change under way: there is nothing to read again.
        self.handle_term()


def _protocol(settings: Settings) -> type[asyncio.Protocol] | Literal["httptools"]:
    """The class that speaks HTTP. Ours rely on uvicorn's internals, and step aside for others."""
    if not uvicorn.__version__.startswith("0.54."):
        logger.warning(
            "uvicorn %s is not the 0.54 that sesiones knows: no fast lane, 408 and 431",
            uvicorn.__version__,
        )
        return "httptools"
    return FastLane if settings.http == "fast" else HttpProtocol


@contextmanager
def listen(settings: Settings) -> Iterator[tuple[socket.socket, str]]:
    """A listening socket and its URL, closed at the end.

    Without a service key only loopback and unix sockets will do. Raises SettingsError and
    ListenError.
    """
    if settings.uds is not None:
        with _bind_unix(settings.uds) as listener:
            yield listener, f"unix:{settings.uds}"
        return
    with _bind_tcp(settings) as listener:
        host, port = listener.getsockname()[:2]
        yield listener, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind_tcp(settings: Settings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ListenError(f"cannot listen on {settings.host!a}: no such host") from None
    if not settings.service_key and not ipaddress.ip_address(address[0]).is_loopback:
        raise SettingsError(
            f"set SESIONES_SERVICE_KEY to listen on {settings.host}: without it anyone who "
            "reaches it can make sessions, so only loopback and unix sockets are allowed"
        )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":
            # Connections inherit it. The protocol does not see what the kernel holds for a client
            # that takes nothing: a megabyte each, for as long as it likes.
            milliseconds = int(SEND_SECONDS * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.bind(address)
        # Listening already now: a second server on the same port fails here, not later.
        listener.listen()
    except OSError as error:
        listener.close()
        raise ListenError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        ) from None
    listener.set_inheritable(True)
    return listener


@contextmanager
def _bind_unix(path: str) -> Iterator[socket.socket]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        mask = os.umask(0o117)  # 0660 from the first moment
        try:
            listener.bind(path)
            listener.listen()  # from now on it is not a stale one
        finally:
            os.umask(mask)
    except OSError as error:
        listener.close()
        reason = error.strerror or error  # "AF_UNIX path too long" has no errno
        raise ListenError(f"cannot listen on {path}: {reason}") from None
    listener.set_inheritable(True)
    try:
        yield listener
    finally:
        listener.close()
        with suppress(FileNotFoundError):
            os.unlink(path)


def _remove_stale(path: str) -> None:
    """Remove the socket file that a killed server left. Raises OSError when one is served."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return  # bind() will refuse
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
