"""What a gateway asks the service. A test's docstring is its row in the table."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from scripts.gateways import Gateway, RunningGateway
from tests.gateways.stand import SPELLINGS, Application, Stand, served, token
from tests.harness.service import comes_true

TOKEN = "ses_" + "A" * 45
NO_SLIDE = "x-sin-deslizar"


class RecordingNode:
    """In place of a node: it lets every request pass, and remembers what it was asked."""

    def __init__(self) -> None:
        asked = self.asked = []  # type: list[dict[str, list[str]]]

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers: dict[str, list[str]] = {}
                for name, value in self.headers.items():
                    headers.setdefault(name.lower(), []).append(value)
                asked.append(headers)
                self.send_response(401 if "x-auth-token" not in headers else 200)
                for name in "X-ID-Usuario", "X-ID-Sesion", "X-Fecha-Expiracion":
                    self.send_header(name, "1")
                for name in "WWW-Authenticate", "Cache-Control", "Content-Type":
                    self.send_header(name, "a")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_POST = do_OPTIONS = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> "RecordingNode":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Recorded:
    """A gateway in front of recording nodes."""

    def __init__(self, stand: Stand, nodes: list[RecordingNode]) -> None:
        self._stand = stand
        self._nodes = nodes

    def asked(self, headers: list[tuple[str, str]], target: str) -> dict[str, list[str]]:
        """The headers of the check that a request makes. The request passes."""
        for node in self._nodes:
            node.asked.clear()
        sent = [("x-auth-token", TOKEN), *headers]
        # A busy machine may need more than the second that a gateway waits.
        assert comes_true(lambda: self._stand.ask(sent, target=target).status == 200, 10)
        # HAProxy asks by itself too, without a token.
        checks = [each for node in self._nodes for each in node.asked if "x-auth-token" in each]
        return checks[0]


@pytest.fixture(scope="module")
def recorded(gateway: Gateway, application: Application) -> Iterator[Recorded]:
    with ExitStack() as stack:
        nodes = [stack.enter_context(RecordingNode()) for _ in range(2)]
        ports = [node.port for node in nodes]
        running = stack.enter_context(RunningGateway(gateway, ports, application.port))
        yield Recorded(Stand(gateway, running, None), nodes)  # type: ignore[arg-type]


def test_no_slide_of_the_client(recorded: Recorded) -> None:
    """a client's own `X-Sin-Deslizar` never reaches the check: any case, repeated, with \
underscores or dots"""
    for target in "/", "/a/background/b", "/backgrounds", "/background/../a":
        for spell in SPELLINGS.values():
            for headers in [], [("Connection", f"keep-alive, {NO_SLIDE}")]:
                sent = [(spell(NO_SLIDE), "1")] * 2
                assert NO_SLIDE not in recorded.asked([*headers, *sent], target)


def test_no_slide_of_the_gateway(recorded: Recorded, gateway: Gateway) -> None:
    """a website's gateway sends it for paths of `/background/`, whatever the client sends"""
    expected = ["1"] if gateway.variant == "web" else None
    for target in "/background", "/background/a", "/background/a/b?c":
        for value in None, "0", "1":
            for spell in SPELLINGS.values():
                sent = [(spell(NO_SLIDE), value)] if value else []
                assert recorded.asked(sent, target).get(NO_SLIDE) == expected
        listed = [("Connection", f"keep-alive, {NO_SLIDE}")]
        assert recorded.asked(listed, target).get(NO_SLIDE) == expected


def last_use(stand: Stand, session: dict[str, Any]) -> int:
    """Ultima_Actividad, by a list, which is no use."""
    listed = stand.backend.ask_node("GET", f"/sesiones/usuarios/{session['ID_Usuario']}", {}).json()
    (found,) = [each for each in listed["Sesiones"] if each["ID_Sesion"] == session["ID_Sesion"]]
    return int(found["Ultima_Actividad"])


def test_no_slide(stand: Stand, session: dict[str, Any]) -> None:
    """such a request is no use of the session, and any other is, whatever the client sends"""
    created = session["Ultima_Actividad"]
    time.sleep(1.1)  # a slide moves whole seconds
    if stand.gateway.variant == "web":
        served(stand, stand.ask(token(session), target="/background/a"), session)
        assert last_use(stand, session) == created
    served(stand, stand.ask([(NO_SLIDE, "1"), *token(session)]), session)
    assert last_use(stand, session) > created


def test_only_the_credentials(recorded: Recorded) -> None:
    """the check gets no cookie"""
    asked = recorded.asked([("Cookie", "a=1"), ("Cookie", "b=2")], "/")
    assert "cookie" not in asked
