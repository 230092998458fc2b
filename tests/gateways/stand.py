"""What a gateway stands between: sesiones on two nodes, and an application that remembers what
reached it.

In every test the application may receive only requests of live sessions, each with the identity
of its session and no other header that reads as an identity, unless its path is public. served()
and refused() check that, and the fixture ``stand`` that no other request arrived.
"""

import asyncio
import dataclasses
import http.client
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from scripts.gateways import Gateway, RunningGateway
from tests.gateways.client import Body, Headers, exchange
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer
from tests.harness.service import Reply, Service

OUTAGE_SECONDS = 3.0
"""A client gets its 503 within this time: the gateway asks two nodes, each for about a second."""

RECOVERY_SECONDS = 5.0

IDENTITY = ("x-id-usuario", "x-id-sesion", "x-fecha-expiracion")
SPOOFED = "666"

SPELLINGS: dict[str, Callable[[str], str]] = {
    "title": str.title,
    "upper": str.upper,
    "lower": str.lower,
    "underscores": lambda name: name.replace("-", "_"),
    "first_underscore": lambda name: name.replace("-", "_", 1),
    "last_underscore": lambda name: "_".join(name.rsplit("-", 1)),
    "dots": lambda name: name.replace("-", "."),
    "last_dot": lambda name: ".".join(name.rsplit("-", 1)),
}
"""Ways to write the name of a header that some application takes for the name."""

EVENTS = "/events"
EVENT_SECONDS = 0.2


@dataclasses.dataclass
class Arrived:
    """A request that reached the application."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def identity(self) -> list[tuple[str, str]]:
        """Whatever an application could take for the identity headers: CGI and WSGI do not tell
        a dash from an underscore, and PHP not from a dot."""
        names = [(re.sub("[_.]", "-", name.lower()), value) for name, value in self.headers]
        return sorted((name, value) for name, value in names if name in IDENTITY)

    def values(self, name: str) -> list[str]:
        return [value for each, value in self.headers if each == name]

    def has_right_identity(self) -> bool:
        """All of it, in numbers that the client did not send; none on a public path."""
        identity = self.identity()
        if re.fullmatch(r"/(public|auth)(/[\w-][\w.-]*)*/?(\?.*)?", self.target):
            return not identity
        return [name for name, _ in identity] == sorted(IDENTITY) and all(
            value.isdigit() and value != SPOOFED for _, value in identity
        )


class Application:
    """What the gateway protects: an HTTP server that answers 200 and remembers. ``/events`` is a
    stream of server-sent events, and a WebSocket answers each message with the same one."""

    def __init__(self) -> None:
        self.port = free_port()
        self.arrived: list[Arrived] = []
        self.wrong_identity: list[Arrived] = []
        config = uvicorn.Config(
            self._app,
            port=self.port,
            interface="asgi3",
            http="httptools",
            ws="wsproto",
            lifespan="off",
            log_level="error",
            timeout_keep_alive=75,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            self._remember("WEBSOCKET", scope, b"")
            await _echo(receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self._remember(scope["method"], scope, bytes(body))
        if scope["path"] == EVENTS:
            await _stream(receive, send)
            return
        answer = [(b"content-length", b"5"), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": answer})
        await send({"type": "http.response.body", "body": b"hello"})

    def _remember(self, method: str, scope: Any, body: bytes) -> None:
        target = scope["raw_path"] + (b"?" * bool(scope["query_string"])) + scope["query_string"]
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]]
        arrived = Arrived(method, target.decode("latin-1"), headers, body)
        self.arrived.append(arrived)
        if not arrived.has_right_identity():
            self.wrong_identity.append(arrived)

    def __enter__(self) -> "Application":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()


async def _echo(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def _stream(receive: Any, send: Any) -> None:
    """An event at once, then one every EVENT_SECONDS, until the client leaves."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    left = asyncio.ensure_future(receive())
    while not left.done():
        body = f"data: {time.monotonic()}\n\n".encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await asyncio.wait([left], timeout=EVENT_SECONDS)


class Backend:
    """Redis, the nodes and the application: what a gateway stands in front of."""

    def __init__(self, redis: RedisServer, application: Application, **variables: str) -> None:
        self.redis = redis
        self.application = application
        self._variables = variables
        self.ports = [free_port(), free_port()]
        self.nodes = [self._node(port) for port in self.ports]

    def _node(self, port: int) -> Service:
        # Long, so that a busy machine makes no 503, but below the second that gateways wait.
        variables = {"SESIONES_REDIS_URL": self.redis.url, "SESIONES_REDIS_TIMEOUT": "0.8"}
        return Service("--port", str(port), **variables, **self._variables).start()

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
    def without_redis(self) -> Iterator[None]:
        self.redis.stop()
        try:
            yield
        finally:
            self.redis.start()

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

    def checks(self) -> list[float]:
        """How many checks each node has answered."""
        return [
            sum(map(float, re.findall(r"^sesiones_checks_total\S* (\S+)$", text, re.MULTILINE)))
            for text in (node.request("GET", "/metrics").body.decode() for node in self.nodes)
        ]

    def new_session(self, ID_Usuario: int = 7) -> dict[str, Any]:
        """Made where the backend of an application makes them: at a node, not the gateway."""
        body = f'{{"ID_Usuario": {ID_Usuario}, "Dispositivo": "laptop"}}'
        made = self.ask_node("POST", "/sesiones", {"Content-Type": "application/json"}, body)
        assert made.status == 201
        session: dict[str, Any] = made.json()
        return session

    def end_session(self, session: dict[str, Any]) -> None:
        target = f"/sesiones/logout?Token_Sesion={session['Token_Sesion']}"
        assert self.ask_node("DELETE", target, dict(token(session))).status == 200

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


def token(session: dict[str, Any]) -> list[tuple[str, str]]:
    return [("x-auth-token", session["Token_Sesion"])]


def cookie(session: dict[str, Any]) -> list[tuple[str, str]]:
    return [("Cookie", f"__Host-sesion={session['Token_Sesion']}")]


def passed(stand: Stand, reply: Reply) -> Arrived:
    """The one request that reached the application."""
    assert (reply.status, reply.body) in ((200, b"hello"), (200, b"")), stand.running.log
    (arrived,) = stand.arrived
    stand.arrived.clear()
    return arrived


def served(stand: Stand, reply: Reply, session: dict[str, Any]) -> Arrived:
    """The one request that reached the application, with the session's identity."""
    arrived = passed(stand, reply)
    identity = dict(arrived.identity())
    expires = int(identity.pop("x-fecha-expiracion"))
    assert len(arrived.identity()) == len(IDENTITY)
    assert identity == {
        "x-id-usuario": str(session["ID_Usuario"]),
        "x-id-sesion": str(session["ID_Sesion"]),
    }
    assert session["Fecha_Expiracion"] <= expires <= time.time() + 1801
    return arrived


def refused(stand: Stand, reply: Reply, status: int = 401) -> None:
    assert reply.status == status, stand.running.log
    assert not stand.arrived


def unavailable(stand: Stand, begun: float, reply: Reply) -> None:
    refused(stand, reply, 503)
    assert time.monotonic() - begun < OUTAGE_SECONDS
    assert reply.headers["retry-after"] == "1"


def recovers(stand: Stand, session: dict[str, Any]) -> None:
    stand.arrived.clear()
    deadline = time.monotonic() + RECOVERY_SECONDS
    while (reply := stand.ask(token(session))).status != 200:
        assert time.monotonic() < deadline, reply
        refused(stand, reply, 503)
        time.sleep(0.05)
    served(stand, reply, session)
