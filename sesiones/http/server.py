"""Serving: the listening sockets, uvicorn, start and stop."""

import asyncio
import errno
import faulthandler
import fcntl
import functools
import gc
import ipaddress
import logging
import os
import resource
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, Literal

import uvicorn

from sesiones import logs, signals
from sesiones.http.app import create_app
from sesiones.http.fast_check import FastLane
from sesiones.http.protocol import SEND_SECONDS, HttpProtocol
from sesiones.http.watch import Watch
from sesiones.http.workers import BEAT_SECONDS, Supervisor
from sesiones.metrics import ProcessSlots
from sesiones.settings import Settings, SettingsError, warnings

logger = logging.getLogger("sesiones.server")

KEEP_ALIVE_SECONDS = 75
"""Longer than gateways keep idle connections, so that they are the ones to close."""

STOP_SECONDS = 8
"""From SIGTERM to the end of the process, whatever it is doing."""
GRACE_SECONDS = 7
"""Of them, what requests in flight may take."""
KILL_SECONDS = 7.5
"""When workers that have not ended are killed."""

FILES_MIN = 64
"""Open files, without which an event loop cannot even be ended."""

LOCK_SECONDS = 1.0
"""How long to wait for another process that looks at the same unix socket."""


class ListenError(Exception):
    """The service cannot listen where it should, or cannot start; the message is one line."""


def serve(settings: Settings, listeners: Sequence[socket.socket]) -> None:
    """Serve on the sockets until SIGTERM, SIGINT or SIGHUP: then stop accepting, answer what is in
    flight or on its way and close Redis.

    Without a service key POST and PUT are open: listen() saw to it that only this machine is
    let in. Raises ListenError.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FILES_MIN:
        raise ListenError(
            f"cannot serve with at most {files} open files: allow {FILES_MIN} at least (ulimit -n)"
        )
    logs.set_up(settings.log_format)
    for warning in warnings(settings, os.environ, sys.argv):
        logger.warning(warning)
    try:
        with Watch(settings):
            if settings.workers > 1:
                arguments = _work, listeners, settings, ProcessSlots()
                supervisor = Supervisor(settings.workers, KILL_SECONDS, *arguments)
                signals.on_stop(supervisor.stop)
                run = supervisor.run
            else:
                server = _Server(_config(settings))
                signals.on_stop(server.handle_exit)
                run = functools.partial(server.run, list(listeners))
            for listener in listeners:
                logger.info("listening on %s", listener.getsockname())
            run()
    except OSError as error:  # too many open files, for instance
        raise ListenError(f"cannot serve: {error.strerror or error}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()


def _work(
    line: socket.socket, listeners: Sequence[socket.socket], settings: Settings, slots: ProcessSlots
) -> None:
    """A worker process, which ends when the other end of the line is closed."""
    logs.set_up(settings.log_format)
    try:
        server = _Server(_config(settings, slots), line)
        signals.on_stop(server.handle_exit)
        signals.release()
        server.run(list(listeners))
    except OSError as error:
        logger.error("the worker cannot serve: %s", error)
        sys.exit(1)
    except Exception:
        logger.exception("the worker cannot serve")
        sys.exit(1)


def _config(settings: Settings, slots: ProcessSlots | None = None) -> uvicorn.Config:
    return uvicorn.Config(
        functools.partial(create_app, settings, open_without_key=True, slots=slots),
        factory=True,
        http=_protocol(settings),
        ws="none",
        log_config=None,
        access_log=settings.access_log,
        server_header=False,
        proxy_headers=settings.forwarded_allow_ips is not None,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, line: socket.socket | None = None) -> None:
        super().__init__(config)
        self._line = line
        self._nowhere = os.open(os.devnull, os.O_WRONLY)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._line is not None:
            self._line.setblocking(False)
            asyncio.get_running_loop().add_reader(self._line, self._abandoned, self._line)
            self._beat(self._line)
        await super().startup(sockets)
        # Full collections are pauses: of 20 ms for what there is now, which stays, and of 50 ms for
        # a thousand slow bodies. Hardly any garbage needs one.
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], 100)

    def _beat(self, line: socket.socket) -> None:
        with suppress(OSError):  # it is full while the supervisor is stopped
            line.send(b".")
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat, line)

    def _abandoned(self, line: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(line)
        logger.error("the first process is gone: this worker ends")
        self.handle_exit(signal.SIGTERM, None)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # serve() has set the handlers, which stay: uvicorn would raise the signal again at the end.
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            # A thread of C ends the process if the event loop hangs.
            faulthandler.dump_traceback_later(STOP_SECONDS, exit=True, file=self._nowhere)
        super().handle_exit(sig, frame)

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
def listen(settings: Settings) -> Iterator[tuple[list[socket.socket], str]]:
    """Listening sockets, one for each address of the host, and the URL of one of them; closed at
    the end.

    Without a service key only loopback and unix sockets will do. Raises SettingsError and
    ListenError.
    """
    if settings.uds is not None:
        with _bind_unix(settings.uds) as listener:
            yield [listener], f"unix:{settings.uds}"
        return
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in _bind_tcp(settings)]
        names = [listener.getsockname() for listener in listeners]
        host, port = min(names, key=len)[:2]  # an IPv4 address, where there is one
        yield listeners, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind_tcp(settings: Settings) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError):
        raise ListenError(f"cannot listen on {settings.host!a}: no such host") from None
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for _, address in addresses:
        if not settings.service_key and not ipaddress.ip_address(address[0]).is_loopback:
            raise SettingsError(
                f"set SESIONES_SERVICE_KEY to listen on {settings.host}: without it anyone who "
                "reaches it can make sessions, so only loopback and unix sockets are allowed"
            )
    tries = 10
    while True:
        try:
            return _bind_all(addresses)
        except OSError as error:
            tries -= 1
            # Port 0: the port that the first address got may be taken on another one.
            if settings.port == 0 and len(addresses) > 1 and tries:
                continue
            raise ListenError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
            ) from None


def _bind_all(addresses: Sequence[tuple[socket.AddressFamily, Any]]) -> list[socket.socket]:
    """Sockets on the addresses, all of one port. An address that this machine does not have, such
    as ::1 where IPv6 is off, is left out unless it is the only one. Raises OSError."""
    absent: OSError | None = None
    with ExitStack() as stack:
        listeners: list[socket.socket] = []
        for family, address in addresses:
            if listeners:
                address = (address[0], listeners[0].getsockname()[1], *address[2:])
            try:
                listener = _bind(family, address, alone=len(addresses) == 1)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                absent = error
                continue
            listeners.append(stack.enter_context(listener))
        if not listeners and absent is not None:
            raise absent
        stack.pop_all()
        return listeners


def _bind(family: socket.AddressFamily, address: Any, *, alone: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and not alone:
            # Else :: would take the port of 0.0.0.0 too.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if sys.platform == "linux":
            # Connections inherit it. The protocol does not see what the kernel holds for a client
            # that takes nothing: a megabyte each, for as long as it likes.
            milliseconds = int(SEND_SECONDS * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.bind(address)
        # Listening already now: a second server on the same port fails here, not later.
        listener.listen()
        listener.set_inheritable(True)
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def _bind_unix(path: str) -> Iterator[socket.socket]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _locked(path):
            _remove_stale(path)
            mask = os.umask(0o117)  # 0660 from the first moment
            try:
                listener.bind(path)
                listener.listen()  # from now on it is not a stale one
            finally:
                os.umask(mask)
            ours = _identity(path)
    except OSError as error:
        listener.close()
        reason = error.strerror or error  # "AF_UNIX path too long" has no errno
        raise ListenError(f"cannot listen on {path}: {reason}") from None
    listener.set_inheritable(True)
    try:
        yield listener
    finally:
        listener.close()
        # While this process was finishing its requests, another one may have begun to listen here.
        with suppress(OSError), _locked(path):
            if _identity(path) == ours:
                os.unlink(path)


def _identity(path: str) -> tuple[int, int, int]:
    """Of a socket file. A later one may have its inode number, but not the time as well."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Nothing comes between looking at the socket file and changing it: one process at a time.

    The lock is the folder's, so no file is left. Any process that may read the folder can hold it,
    so this goes on without it after a second.
    """
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    except OSError:  # not readable: bind() will tell what else is wrong
        yield
        return
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        yield
    finally:
        os.close(folder)


def _remove_stale(path: str) -> None:
    """Remove the socket file that a killed server left. Raises OSError when one is served."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return  # bind() will refuse
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a server that hangs has no room for another connection
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            pass
