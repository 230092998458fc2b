"""`sesiones health`: whether the local service answers, asked as the settings say where it listens.

For the health checks of containers and supervisors, which know the settings but not the address.
"""

import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address

from sesiones.settings import Settings, SettingsError

PATH = "/livez"
TIMEOUT_SECONDS = 2
"""For each step on one connection; Docker and Compose allow 3 s in docs/deploy."""


class DeadError(Exception):
    """The service does not answer as it should; the message is one line."""


def ask(settings: Settings) -> str:
    """Where the service answers with a 200. Raises DeadError, or SettingsError where it cannot be
    known where to ask."""
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
                reasons.append(f"{where}: status {status} of {PATH}")
    except (OSError, UnicodeError):
        reasons.append(f"{settings.host!a}: no such host")
    raise DeadError("; ".join(reasons))


def _status(connection: HTTPConnection) -> int:
    """Of the reply. HTTPConnection, unlike urllib, knows no proxy."""
    try:
        connection.connect()
        connection.request("GET", PATH, headers={"Host": "localhost", "Connection": "close"})
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
            # What listens on every IPv6 address takes IPv4 too, as Linux has it by default.
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
