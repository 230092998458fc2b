"""`sesiones serve` as a command, where the Service of service.py is not enough: on any address."""

import http.client
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.service import Service, environment, refused

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
SESSION = "ID_Usuario=7&Dispositivo=laptop"


@contextmanager
def running(*flags: str, **variables: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """`sesiones serve` anywhere, and the line that says where it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sesiones", "serve", *flags],
        env=environment() | variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr as log:
        try:
            line = next((line for line in log if "listening on" in line), "")
            # The rest is not read: its few lines fit into the pipe.
            yield process, line
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def refused_serve(*flags: str, **variables: str) -> tuple[int, str]:
    return refused([sys.executable, "-m", "sesiones", "serve", *flags], None, **variables)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


def status_over(path: Path) -> int:
    """The status of a request without a token over the unix socket."""
    connection = UnixConnection(path)
    try:
        connection.request("GET", "/sesiones/self")
        return connection.getresponse().status
    finally:
        connection.close()


def answers(path: Path) -> bool:
    """Whether a server answers requests on the unix socket."""
    try:
        return status_over(path) == 401
    except OSError:
        return False


def listens(path: Path) -> bool:
    """Whether a server listens on the unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def kept_alive(service: Service) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
