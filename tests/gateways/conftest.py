"""Fixtures: sesiones on two nodes, an application that remembers what reached it, and each gateway
of docs/gateways between the two.

What a gateway cannot do is declared in CANNOT, and nowhere else.
"""

import dataclasses
import http.client
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from redis import Redis

from scripts.gateways import GATEWAYS, Gateway, RunningGateway
from tests.gateways import table
from tests.gateways.client import Body, Headers, exchange
from tests.harness.redis_server import RedisServer, free_port
from tests.harness.service import Reply, Service

IDENTITY = ("x-id-usuario", "x-id-sesion", "x-fecha-expiracion")
SPOOFED = "666"

HAPROXY_CHUNKS = (
    "HAProxy would pass a chunked body's trailers on, and with them an identity of the client's "
    "own; its configuration refuses such bodies with a 411."
)
CANNOT = {
    ("Traefik", "test_dots"): "Traefik cleans a path of `.`, `..` and `//` before anything else "
    "(`sanitizePath`, which is best left on).",
    ("HAProxy", "test_chunked_body"): HAPROXY_CHUNKS,
    ("HAProxy", "test_chunked_body_refused"): HAPROXY_CHUNKS,
}
"""(gateway, test) to the reason. Such a test has to fail: the day it passes, so much for the
reason. That nothing passes without a session is not for declaring here."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-table", action="store_true", help="write docs/gateways/README.md")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        gateway = _gateway_of(item)
        if gateway and (reason := CANNOT.get((gateway, item.originalname))):  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.xfail(reason=reason))


def _gateway_of(item: pytest.Item) -> str | None:
    gateway = getattr(item, "callspec", None) and item.callspec.params.get("gateway")  # type: ignore[attr-defined]
    return gateway.name if gateway else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    gateway = _gateway_of(item)
    if gateway and report.when == "call":
        description = item.obj.__doc__.strip()  # type: ignore[attr-defined]
        reason = "It failed." if report.failed else getattr(report, "wasxfail", None)
        table.record(description, gateway, reason)
    return report


@dataclasses.dataclass
class Arrived:
    """A request that reached the application."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def identity(self) -> list[tuple[str, str]]:
        """Whatever an application could take for the identity headers: CGI and WSGI do not tell
        a dash from an underscore."""
        names = [(name.lower().replace("_", "-"), value) for name, value in self.headers]
        return sorted((name, value) for name, value in names if name in IDENTITY)


class Application:
    """What the gateway protects: an HTTP server that answers 200 and remembers."""

    def __init__(self) -> None:
        self.port = free_port()
        self.arrived: list[Arrived] = []
        self.without_identity: list[Arrived] = []
        config = uvicorn.Config(
            self._app,
            port=self.port,
            interface="asgi3",
            http="httptools",
            ws="none",
            lifespan="off",
            log_level="error",
            timeout_keep_alive=75,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body = bytearray()
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        target = scope["raw_path"] + (b"?" * bool(scope["query_string"])) + scope["query_string"]
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]]
        arrived = Arrived(scope["method"], target.decode("latin-1"), headers, bytes(body))
        self.arrived.append(arrived)
        identity = arrived.identity()
        if [name for name, _ in identity] != sorted(IDENTITY) or not all(
            value.isdigit() and value != SPOOFED for _, value in identity
        ):
            self.without_identity.append(arrived)
        answer = [(b"content-length", b"5"), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": answer})
        await send({"type": "http.response.body", "body": b"hello"})

    def __enter__(self) -> "Application":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()


class Backend:
    """Redis, the nodes and the application: what a gateway stands in front of."""

    def __init__(self, redis: RedisServer, application: Application, **variables: str) -> None:
        self.redis = redis
        self.application = application
        self._variables = variables
        self.ports = [free_port(), free_port()]
        self.nodes = [self._node(port) for port in self.ports]

    def _node(self, port: int) -> Service:
        return Service(
            "--port", str(port), SESIONES_REDIS_URL=self.redis.url, **self._variables
        ).start()

    def __enter__(self) -> "Backend":
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.__exit__(None, None, None)

    @contextmanager
    def without(self, *numbers: int) -> Iterator[None]:
        """Nodes killed, and started again."""
        for number in numbers:
            self.nodes[number].stop(signal.SIGKILL)
        try:
            yield
        finally:
            for number in numbers:
                self.nodes[number].__exit__(None, None, None)
                self.nodes[number] = self._node(self.ports[number])

    @contextmanager
    def hung(self, *numbers: int) -> Iterator[None]:
        """Nodes that accept connections and say nothing."""
        for number in numbers:
            process = self.nodes[number].process
            assert process is not None
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for number in numbers:
                process = self.nodes[number].process
                assert process is not None
                process.send_signal(signal.SIGCONT)

    def new_session(self, ID_Usuario: int = 7) -> dict[str, Any]:
        """Made where the backend of an application makes them: at a node, not the gateway."""
        body = f'{{"ID_Usuario": {ID_Usuario}, "Dispositivo": "laptop"}}'
        made = self.ask_node("POST", "/sesiones", {"Content-Type": "application/json"}, body)
        assert made.status == 201
        session: dict[str, Any] = made.json()
        return session

    def ask_node(
        self, method: str, path: str, headers: dict[str, str], body: str | bytes | None = None
    ) -> Reply:
        return self.nodes[0].request(method, path, headers, body)


@dataclasses.dataclass
class Stand:
    """A gateway at work, and what is behind it."""

    gateway: Gateway
    running: RunningGateway
    backend: Backend

    @property
    def arrived(self) -> list[Arrived]:
        return self.backend.application.arrived

    @property
    def port(self) -> int:
        return self.running.port

    def ask(
        self,
        headers: Headers = (),
        method: str = "GET",
        target: str = "/",
        body: Body = None,
    ) -> Reply:
        """One request through the gateway, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            return exchange(connection, headers, method, target, body)
        finally:
            connection.close()


@pytest.fixture(scope="session")
def application() -> Iterator[Application]:
    with Application() as application:
        yield application


@pytest.fixture(scope="session")
def backend(application: Application) -> Iterator[Backend]:
    with RedisServer() as redis, Backend(redis, application) as backend:
        yield backend


@pytest.fixture(scope="session", params=GATEWAYS, ids=lambda gateway: gateway.name)
def gateway(request: pytest.FixtureRequest) -> Gateway:
    gateway: Gateway = request.param
    if gateway.binary() is None:
        pytest.skip(f"{gateway.name} is not installed: {gateway.install}")
    return gateway


@pytest.fixture(scope="session")
def running(gateway: Gateway, backend: Backend) -> Iterator[RunningGateway]:
    with RunningGateway(gateway, backend.ports, backend.application.port) as running:
        yield running


@pytest.fixture
def stand(gateway: Gateway, running: RunningGateway, backend: Backend) -> Stand:
    backend.application.arrived.clear()
    return Stand(gateway, running, backend)


@pytest.fixture(scope="session")
def logged(gateway: Gateway, backend: Backend) -> Iterator[Stand]:
    """The gateway in front of nodes that log every request."""
    with (
        Backend(backend.redis, backend.application, SESIONES_ACCESS_LOG="1") as logged,
        RunningGateway(gateway, logged.ports, backend.application.port) as running,
    ):
        yield Stand(gateway, running, logged)


@pytest.fixture
def redis(backend: Backend) -> Iterator["Redis"]:
    with Redis(unix_socket_path=str(backend.redis.socket)) as client:
        yield client
