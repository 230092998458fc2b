"""Listening sockets: TCP on every address of a host, or a unix socket."""

import errno
import fcntl
import ipaddress
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from sesiones.settings import Settings, SettingsError

SEND_SECONDS = 4.0
"""How long a client may read hardly anything of what it is sent, once that is more than buffers
hold."""
LOCK_WAIT_SECONDS = 1.0
"""How long to wait for another process that holds the lock of the unix socket."""


class ListenError(Exception):
    """The service cannot listen where it should, or cannot start; the message is one line."""


@contextmanager
def listen(settings: Settings) -> Iterator[tuple[list[socket.socket], str]]:
    """Listening sockets, one for each address of the host, and the URL of one of them. They are
    closed at the end.

    Without a service key only loopback and unix sockets are allowed. Raises SettingsError and
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
                f"set SESIONES_SERVICE_KEY to listen on {settings.host}: without it every client "
                "that reaches it can make sessions, so only loopback and unix sockets are allowed"
            )
    tries = 10
    while True:
        try:
            return _bind_addresses(addresses)
        except OSError as error:
            tries -= 1
            # Port 0: the port that the first address got may be taken on another one.
            if settings.port == 0 and len(addresses) > 1 and tries:
                continue
            raise ListenError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
            ) from None


def _bind_addresses(addresses: Sequence[tuple[socket.AddressFamily, Any]]) -> list[socket.socket]:
    """Sockets on the addresses, all on one port. An address that this machine does not have, such
    as ::1 where IPv6 is off, is left out unless it is the only one. Raises OSError."""
    absent: OSError | None = None
    with ExitStack() as stack:
        listeners: list[socket.socket] = []
        for family, address in addresses:
            if listeners:
                address = (address[0], listeners[0].getsockname()[1], *address[2:])
            try:
                listener = _bind_address(family, address, alone=len(addresses) == 1)
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


def _bind_address(family: socket.AddressFamily, address: Any, *, alone: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and not alone:
            # Otherwise :: would take the port of 0.0.0.0 too.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if sys.platform == "linux":
            # Connections inherit it. The protocol does not see what the kernel holds for a client
            # that reads nothing: up to a megabyte for each, without end.
            milliseconds = int(SEND_SECONDS * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.bind(address)
        # It listens from now on, so that a second server on the same port fails here, not later.
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
                listener.listen()  # from now on the file is not a stale one
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
        # While this process finished its requests, another one may have begun to listen here.
        with suppress(OSError), _locked(path):
            if _identity(path) == ours:
                os.unlink(path)


def _identity(path: str) -> tuple[int, int, int]:
    """What tells a socket file from another one at the same path: a later one may have the same
    inode number, but not the same time as well."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Lets one process at a time look at the socket file and then change it.

    The lock is the folder's, so no lock file is left. Any process that may read the folder can hold
    it, so this goes on without the lock after LOCK_WAIT_SECONDS.
    """
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    except OSError:  # not readable: bind() reports what else is wrong
        yield
        return
    try:
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        yield
    finally:
        os.close(folder)


def _remove_stale(path: str) -> None:
    """Remove the socket file that a killed server has left. Raises OSError when a server listens on
    it."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return  # bind() refuses it
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


def accept_waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that the kernel has made and the service has not accepted yet."""
    with suppress(OSError):  # a BlockingIOError when there is none
        while True:
            yield listener.accept()[0]
