"""`sesiones health`: whether the local service answers at the address that its settings name.

The health checks of containers and supervisors run it: they know the settings but no address.
"""

import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address

from sesiones import paths
from sesiones.cli.exits import CommandError, Exit
from sesiones.settings import Settings, SettingsError

TIMEOUT_SECONDS = 2
"""The limit of each step on one connection. Docker and Compose allow 3 s in docs/deploy."""


def ask(settings: Settings) -> str:
    """The address at which the service answers with a 200. Raises CommandError when there is none,
    and SettingsError when the settings name no address."""
    if settings.uds is None and settings.port == 0:
        raise SettingsError("SESIONES_PORT is 0: which port serve has picked is not known here")
    reasons = []
    try:
        for where, connection in _connections(settings):
            try:
                status = _status(connection)
            except OSError as error:
                reasons.append(f"{where}: {error.strerror or error}")
            except HTTPException:
                reasons.append(f"{where}: what answers speaks no HTTP")
            else:
                if status == 200:
                    return where
                reasons.append(f"{where}: status {status} of {paths.LIVE}")
    except (OSError, UnicodeError):
        reasons.append(f"{settings.host!a}: no such host")
    raise CommandError(Exit.NO, "; ".join(reasons))


def _status(connection: HTTPConnection) -> int:
    """The status of the reply. HTTPConnection, unlike urllib, uses no proxy."""
    try:
        connection.connect()
        connection.request("GET", paths.LIVE, headers={"Host": "localhost", "Connection": "close"})
        return connection.getresponse().status
    finally:
        connection.close()


def _connections(settings: Settings) -> Iterator[tuple[str, HTTPConnection]]:
    if settings.uds is not None:
        yield f"unix:{settings.uds}", _UnixConnection(settings.uds)
        return
    addresses = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    for family, _, _, _, (host, *_) in addresses:
        hosts = [str(host)]
        if ip_address(hosts[0].partition("%")[0]).is_unspecified:
            # On Linux a socket on every IPv6 address accepts IPv4 connections too, by default.
            hosts = ["127.0.0.1"] if family == socket.AF_INET else ["::1", "127.0.0.1"]
        for each in hosts:
            where = f"[{each}]" if ":" in each else each
            yield (
                f"{where}:{settings.port}",
                HTTPConnection(each, settings.port, timeout=TIMEOUT_SECONDS),
            )


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_SECONDS)
        self.sock.connect(self._path)
