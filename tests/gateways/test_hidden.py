"""What a client cannot reach. A test's docstring is its row in the table."""

import http.server
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

import pytest

from scripts.gateways import Gateway, RunningGateway
from tests.gateways.client import raw
from tests.gateways.stand import SPOOFED, Backend, Stand
from tests.gateways.targets import DOTS, ODD_TARGETS, TARGETS
from tests.harness.service import Service, comes_true


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "CONNECT"])
@pytest.mark.parametrize("target", TARGETS + DOTS + ODD_TARGETS)
def test_targets_refused(stand: Stand, target: str, method: str) -> None:
    """no path, query or method gets by the check"""
    status = raw(stand.port, f"{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert status >= 400 or target == "*"  # Go answers OPTIONS * itself
    assert not stand.arrived


class Obliging(http.server.BaseHTTPRequestHandler):
    """An application that answers 200 to everything, CONNECT too."""

    protocol_version = "HTTP/1.1"
    users: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.users.append(self.headers["X-ID-Usuario"])
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_CONNECT = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def obliging(gateway: Gateway, backend: Backend) -> Iterator[RunningGateway]:
    """The gateway in front of such an application."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Obliging)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with RunningGateway(gateway, backend.ports, server.server_port) as running:
            yield running
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_tunnels(obliging: RunningGateway, session: dict[str, Any]) -> None:
    """`CONNECT` opens no tunnel to the application, in which nothing is checked"""
    with socket.create_connection(("127.0.0.1", obliging.port), timeout=5) as connection:

        def ask(request: str) -> bytes:
            with suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
                connection.sendall(request.encode())
                return connection.recv(65536)
            return b""

        asked = f"GET / HTTP/1.1\r\nHost: a\r\nx-auth-token: {session['Token_Sesion']}\r\n"
        assert b" 200 " in ask(f"{asked}\r\n")
        Obliging.users.clear()
        ask(asked.replace("GET /", "CONNECT a:80") + "\r\n")
        ask(f"{asked}X-ID-Usuario: {SPOOFED}\r\n\r\n")
    assert set(Obliging.users) <= {str(session["ID_Usuario"])}


HIDDEN = [
    ("POST", "/sesiones"),
    ("PUT", "/sesiones"),
    ("GET", "/sesiones/usuarios/7"),
    ("HEAD", "/sesiones/usuarios/7"),
    ("DELETE", "/sesiones/usuarios/7"),
    ("DELETE", "/sesiones/usuarios/7/1"),
    ("POST", "/sesiones/introspeccion"),
    ("POST", "/sesiones/revocacion"),
]
"""What the application's backend alone may ask of the service."""

SPELLINGS = [
    "{path}",
    "{path}/",
    "{path}?a=b",
    "{path}%20",
    "{path};a",
    "/{path}",
    "//{path}",
    "/..{path}",
    "/.{path}",
    "/a/..{path}",
    "/../..{path}",
    "/%2e%2e{path}",
    "/..%2f{path}",
    "/%2f{path}",
    "/%73{rest}",
    "/%2573{rest}",
    "{upper}",
    "/sesiones/verificar/../..{path}",
    "/sesiones/verificar{path}",
    "/sesiones/self/../..{path}",
    "/_sesiones{path}",
    "/_sesiones/../..{path}",
    "http://127.0.0.1:8000{path}",
    "http://sesiones{path}",
    "/..",
    "/../",
    "/%2e%2e",
]
"""Ways to write a path; {rest} is without its first two characters, "/s"."""


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("method", "path"), HIDDEN)
def test_service_hidden(
    logged: Stand, session: dict[str, Any], method: str, path: str, spelling: str
) -> None:
    """nothing of the service but the check can be reached through it: neither `POST` and `PUT \
/sesiones` nor `/sesiones/usuarios`, `/sesiones/introspeccion` and `/sesiones/revocacion`, in any \
spelling"""
    live = session["Token_Sesion"]
    target = spelling.format(path=path, rest=path[2:], upper=path.upper())
    form = f"token={live}&ID_Usuario=1&Dispositivo=a".encode()
    for credential in f"x-auth-token: {live}", f"Authorization: Bearer {'k' * 32}":
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: a\r\n{credential}\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(form)}\r\n\r\n"
        )
        assert raw(logged.port, head.encode() + form) in (200, 301, 307, 308, 400, 401, 404)
    targets = set().union(*map(asked, logged.backend.nodes))
    assert targets <= {"/sesiones/verificar"}


def asked(node: Service) -> set[str]:
    """The targets that the node was asked for since the last call. It logs every request."""
    marks = node.log.count("/mark")
    node.request("GET", "/mark")
    assert comes_true(lambda: node.log.count("/mark") > marks, 5)
    return set(re.findall(r'"\S+ (\S+) HTTP', node.log.split("/mark")[-2]))
