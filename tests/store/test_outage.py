"""Redis fails in every way that it can: what the service answers, how soon, and how soon it is
well again. All through the process, over its socket.

Of a check the service promises an answer within twice SESIONES_REDIS_TIMEOUT, and recovery within
a second of Redis's, without a restart.
"""

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import pytest
from redis import Redis

from tests.harness.faults import cut_off, full, misconf, noreplicas
from tests.harness.redis_server import RedisServer, free_port
from tests.harness.service import Reply, Service

TIMEOUT = 0.25
CHECK_SECONDS = 2 * TIMEOUT + 0.2  # what a busy machine may add
RECOVERY_SECONDS = 1.0
UNKNOWN = "ses_" + "A" * 45
JSON = {"Content-Type": "application/json"}


@dataclass
class Deployment:
    """A Redis server, and a service on it: directly, or through a relay."""

    server: RedisServer
    service: Service

    @contextmanager
    def redis(self) -> Iterator["Redis"]:
        with Redis(unix_socket_path=str(self.server.socket), decode_responses=True) as client:
            yield client

    def check(self, token: str, path: str = "/sesiones/self") -> Reply:
        return self.service.request("GET", path, {"x-auth-token": token})

    def create(self, ID_Usuario: int = 7) -> Reply:
        body = f'{{"ID_Usuario": {ID_Usuario}, "Dispositivo": "laptop"}}'
        return self.service.request("POST", "/sesiones", JSON, body)

    def new_session(self, ID_Usuario: int = 7) -> dict[str, Any]:
        made = self.create(ID_Usuario)
        assert made.status == 201
        session: dict[str, Any] = made.json()
        return session

    def put(self, session: dict[str, Any]) -> Reply:
        return self.service.request("PUT", "/sesiones", JSON, orjson.dumps(session))

    def end(self, caller: str, designated: str, path: str = "logout") -> Reply:
        return self.service.request(
            "DELETE", f"/sesiones/{path}?Token_Sesion={designated}", {"x-auth-token": caller}
        )


def in_time(ask: Callable[[], Reply], seconds: float = CHECK_SECONDS) -> Reply:
    begun = time.monotonic()
    reply = ask()
    assert time.monotonic() - begun < seconds
    return reply


def assert_unavailable(reply: Reply) -> None:
    assert reply.status == 503
    assert reply.headers["retry-after"] == "1"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["content-type"] == "application/problem+json"


def assert_out(deployment: Deployment, session: dict[str, Any]) -> None:
    """Nothing works but what needs no Redis, nothing takes long, and the log stays short."""
    token = session["Token_Sesion"]
    lines = len(deployment.service.log.splitlines())
    asked: list[Callable[[], Reply]] = [
        lambda: deployment.check(token),
        lambda: deployment.check(token, "/sesiones/verificar/ruta"),
        deployment.create,
        lambda: deployment.put(session),
        lambda: deployment.end(token, token),
        lambda: deployment.end(token, token, "logoutAll"),
    ]
    for ask in asked:
        assert_unavailable(in_time(ask))
    for malformed in "", "ses_", token[:-1], "ses_" + "ñ" * 45:
        reply = in_time(partial(deployment.check, malformed), 0.2)
        assert reply.status == 401
    new = deployment.service.log.splitlines()[lines:]
    assert len(new) <= 3, new
    assert "Redis is unavailable" in deployment.service.log


def assert_recovers(deployment: Deployment, session: dict[str, Any]) -> None:
    """A check works within the promised second, then everything does."""
    token = session["Token_Sesion"]
    begun = time.monotonic()
    while (reply := deployment.check(token)).status != 200:
        assert_unavailable(reply)
        assert time.monotonic() - begun < RECOVERY_SECONDS
        time.sleep(0.02)
    assert reply.json()["ID_Sesion"] == session["ID_Sesion"]
    assert deployment.put(reply.json()).status == 200
    other = deployment.new_session()
    assert deployment.end(token, other["Token_Sesion"]).json() == {"Sesiones_Eliminadas": 1}
    assert deployment.check(other["Token_Sesion"]).status == 401


# Redis itself: stopped, killed, hanging.


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def direct_service(server: RedisServer) -> Iterator[Service]:
    # Every check slides, so that the checks here are writes.
    with Service(
        SESIONES_REDIS_URL=server.url,
        SESIONES_REDIS_TIMEOUT=str(TIMEOUT),
        SESIONES_TOUCH_SECONDS="0",
    ) as service:
        yield service


@pytest.fixture
def direct(server: RedisServer, direct_service: Service) -> Iterator[Deployment]:
    deployment = Deployment(server, direct_service)
    with deployment.redis() as redis:
        redis.flushall()
    yield deployment
    if server.process is None:
        server.start()
    assert server.process is not None
    server.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_redis_is_gone_and_comes_back(direct: Deployment, number: signal.Signals) -> None:
    session = direct.new_session()
    direct.server.stop(number)
    assert_out(direct, session)
    direct.server.start()
    assert_recovers(direct, session)


def test_redis_hangs_and_goes_on(direct: Deployment) -> None:
    session = direct.new_session()
    assert direct.server.process is not None
    direct.server.process.send_signal(signal.SIGSTOP)
    assert_out(direct, session)
    direct.server.process.send_signal(signal.SIGCONT)
    assert_recovers(direct, session)


def test_a_service_that_starts_before_redis(server: RedisServer) -> None:
    server.stop()
    try:
        with Service(SESIONES_REDIS_URL=server.url, SESIONES_REDIS_TIMEOUT=str(TIMEOUT)) as service:
            deployment = Deployment(server, service)
            assert_unavailable(in_time(deployment.create))
            assert in_time(lambda: deployment.check("ses_"), 0.2).status == 401
            server.start()
            begun = time.monotonic()
            while deployment.create().status != 201:
                assert time.monotonic() - begun < RECOVERY_SECONDS
    finally:
        if server.process is None:
            server.start()


def test_a_connection_that_redis_closed_costs_no_answer(direct: Deployment) -> None:
    session = direct.new_session()
    token = session["Token_Sesion"]
    other = direct.new_session()["Token_Sesion"]
    asked: list[tuple[Callable[[], Reply], int]] = [
        (lambda: direct.check(token), 200),
        (lambda: direct.put(session), 200),
        (direct.create, 201),
        (lambda: direct.end(token, other), 200),
    ]
    with direct.redis() as redis:
        for ask, status in asked:
            redis.client_kill_filter(_type="normal", skipme=True)
            assert ask().status == status


def test_an_outage_is_logged_when_it_begins_and_when_it_ends(server: RedisServer) -> None:
    with Service(SESIONES_REDIS_URL=server.url, SESIONES_REDIS_TIMEOUT=str(TIMEOUT)) as service:
        deployment = Deployment(server, service)
        token = deployment.new_session()["Token_Sesion"]
        before = service.log
        server.stop()
        try:
            for _ in range(100):
                assert deployment.check(token).status == 503
        finally:
            server.start()
        for _ in range(12):  # it is over when nothing has failed for a second
            assert deployment.check(token).status == 200
            time.sleep(0.1)
        begun, ended = service.log.removeprefix(before).splitlines()
        assert "ERROR sesiones.store: Redis is unavailable: " in begun
        assert ended.endswith("INFO sesiones.store: Redis is available again")


@pytest.mark.anyio
async def test_many_at_once_in_an_outage(direct: Deployment) -> None:
    """200 connections ask again and again while Redis hangs: each answer is in time, the log stays
    short, and all are served again within the second."""
    token = direct.new_session()["Token_Sesion"]
    request = f"GET /sesiones/self HTTP/1.1\r\nHost: x\r\nx-auth-token: {token}\r\n\r\n".encode()
    logged = len(direct.service.log.splitlines())
    unavailable: list[float] = []
    served: list[float] = []
    assert direct.server.process is not None

    async def client(back: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", direct.service.port)
        with contextlib.closing(writer):
            while True:
                begun = time.monotonic()
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r")[0]))
                if head.startswith(b"HTTP/1.1 200 "):
                    served.append(time.monotonic())
                    return
                assert head.startswith(b"HTTP/1.1 503 ")
                unavailable.append(time.monotonic() - begun)
                if back.is_set():
                    await asyncio.sleep(0.02)

    back = asyncio.Event()
    direct.server.process.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(20), asyncio.TaskGroup() as clients:
        for _ in range(200):
            clients.create_task(client(back))
        await asyncio.sleep(1)
        assert not served
        back.set()
        returned = time.monotonic()
        direct.server.process.send_signal(signal.SIGCONT)
    assert len(unavailable) >= 400
    assert len(served) == 200
    assert max(served) - returned < RECOVERY_SECONDS
    assert max(unavailable) < CHECK_SECONDS + 0.3  # the 200 that ask want the machine, too
    assert len(direct.service.log.splitlines()) - logged <= 4


# What is not Redis, or not quite.


class Relay:
    """A TCP port that does with each connection what it was told: by default, passes it on."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._behave: Callable[[socket.socket], None] = self.forward
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._behave(connection)
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._open.discard(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def become(self, behave: Callable[[socket.socket], None]) -> None:
        """From now on; connections that are open end."""
        self._behave = behave
        for connection in list(self._open):
            self._drop(connection)

    def forward(self, connection: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as redis:
            redis.connect(str(self._server.socket))
            back = threading.Thread(target=_pump, args=(redis, connection), daemon=True)
            back.start()
            _pump(connection, redis)
            back.join()

    @contextmanager
    def full(self) -> Iterator[None]:
        """The same port, but nobody accepts, and no more connections fit into the queue."""
        self.close()
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen(0)
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", self.port))
            yield
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        # shutdown() wakes the thread in accept(); close() alone would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            self._drop(connection)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in source, target:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def black_hole(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def hang_up(connection: socket.socket) -> None:
    """At once, as a server that has too many clients or is just starting."""


def hang_up_in_a_reply(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"*1\r\n*8\r\n$4\r\n40")


def answer_without_end(connection: socket.socket) -> None:
    """Bytes come, a reply never does."""
    connection.recv(65536)
    connection.sendall(b"*1\r\n*1000000\r\n")
    while True:
        connection.sendall(b"$1\r\nx\r\n")
        time.sleep(0.02)


def reply(data: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(data)

    behave.__name__ = repr(data)
    return behave


def speak_first(connection: socket.socket) -> None:
    connection.sendall(b"-ERR max number of clients reached\r\n")
    black_hole(connection)


BEHAVIOURS = [
    black_hole,
    hang_up,
    hang_up_in_a_reply,
    answer_without_end,
    speak_first,
    reply(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    reply(b"\x00\xff" * 1000),
    reply(b"-LOADING Redis is loading the dataset in memory\r\n"),
    reply(b"-MASTERDOWN Link with MASTER is down\r\n"),
    reply(b"-BUSY Redis is busy running a script.\r\n"),
    reply(b"-CLUSTERDOWN The cluster is down\r\n"),
    reply(b"-NOPERM this user has no permissions\r\n"),
    reply(b"-NOSCRIPT No matching script.\r\n"),
    reply(b"-\r\n"),
    # Redis's protocol, but no answer to what was asked.
    reply(b"+OK\r\n"),
    reply(b":1\r\n"),
    reply(b"*0\r\n"),
    reply(b"$-1\r\n"),
    reply(b"*1\r\n:1\r\n"),
]


@pytest.fixture(scope="module")
def relay(server: RedisServer) -> Iterator[Relay]:
    relay = Relay(server)
    yield relay
    relay.close()


@pytest.fixture(scope="module")
def relayed_service(relay: Relay) -> Iterator[Service]:
    with Service(
        "--http",
        "httptools",  # without the fast check
        SESIONES_REDIS_URL=f"redis://127.0.0.1:{relay.port}",
        SESIONES_REDIS_TIMEOUT=str(TIMEOUT),
    ) as service:
        yield service


@pytest.fixture
def relayed(server: RedisServer, relay: Relay, relayed_service: Service) -> Iterator[Deployment]:
    yield Deployment(server, relayed_service)
    relay.become(relay.forward)


@pytest.mark.parametrize("behave", BEHAVIOURS)
def test_what_answers_is_not_redis(
    relayed: Deployment, relay: Relay, behave: Callable[[socket.socket], None]
) -> None:
    session = relayed.new_session()
    token = session["Token_Sesion"]
    relay.become(behave)
    asked: list[Callable[[], Reply]] = [
        lambda: relayed.check(token),
        relayed.create,
        lambda: relayed.put(session),
        lambda: relayed.end(token, token),
    ]
    for ask in asked:
        assert_unavailable(in_time(ask))
    relay.become(relay.forward)
    assert_recovers(relayed, session)


def test_a_full_backlog_that_nobody_accepts(relayed: Deployment, relay: Relay) -> None:
    session = relayed.new_session()
    with relay.full():
        assert_out(relayed, session)
    assert_recovers(relayed, session)


# Redis answers, but refuses.


def test_a_password_that_redis_wants(direct: Deployment) -> None:
    session = direct.new_session()
    with direct.redis() as redis:
        redis.config_set("requirepass", "secreto")
        try:
            redis.client_kill_filter(_type="normal", skipme=True)
            assert_out(direct, session)
        finally:
            redis.config_set("requirepass", "")
    assert_recovers(direct, session)


def test_a_wrong_password_is_not_logged(server: RedisServer) -> None:
    with Redis(unix_socket_path=str(server.socket)) as redis:
        redis.acl_setuser(
            "sesiones", enabled=True, passwords="+right", keys="*", commands=["+@all"]
        )
    with Service(
        SESIONES_REDIS_URL=f"unix://sesiones:hunter2@{server.socket}",
        SESIONES_REDIS_TIMEOUT=str(TIMEOUT),
    ) as service:
        deployment = Deployment(server, service)
        for _ in range(3):
            assert_unavailable(in_time(deployment.create))
        with Redis(unix_socket_path=str(server.socket)) as redis:
            redis.acl_setuser("sesiones", enabled=True, passwords="+hunter2")
        assert_recovers(deployment, deployment.new_session())
        assert service.log.count("Redis is unavailable") == 1
        assert "hunter2" not in service.log


def test_redis_is_full(direct: Deployment) -> None:
    first, second, third = (direct.new_session() for _ in range(3))
    with direct.redis() as redis, full(direct.server):
        for flush in False, True:
            if flush:
                redis.script_flush()  # the scripts load again when memory is full
            seen = direct.check(first["Token_Sesion"])
            assert seen.status == 200
            assert seen.json()["Ultima_Actividad"] >= first["Ultima_Actividad"]
            assert direct.check(UNKNOWN).status == 401
            assert_unavailable(direct.create())
            assert_unavailable(direct.put(first))
        # A check still slides: half a window later the session would be gone.
        time.sleep(1.1)
        assert (
            direct.check(first["Token_Sesion"]).json()["Ultima_Actividad"]
            > (seen.json()["Ultima_Actividad"])
        )
        ended = direct.end(first["Token_Sesion"], second["Token_Sesion"])
        assert ended.json() == {"Sesiones_Eliminadas": 1}
        assert direct.check(second["Token_Sesion"]).status == 401
        ended = direct.end(first["Token_Sesion"], first["Token_Sesion"], "logoutAll")
        assert ended.json() == {"Sesiones_Eliminadas": 2}
        assert direct.check(third["Token_Sesion"]).status == 401
    assert direct.create().status == 201


def test_redis_has_too_many_clients(direct: Deployment) -> None:
    session = direct.new_session()
    with direct.redis() as redis:
        redis.config_set("maxclients", 1)
        try:
            redis.client_kill_filter(_type="normal", skipme=True)
            assert_out(direct, session)
        finally:
            redis.config_set("maxclients", 1000)
    assert_recovers(direct, session)


@pytest.mark.parametrize("refuse", [noreplicas, misconf])
def test_redis_takes_no_writes(
    direct: Deployment, refuse: Callable[[RedisServer], contextlib.AbstractContextManager[None]]
) -> None:
    session, other, inactive = (direct.new_session() for _ in range(3))
    token = session["Token_Sesion"]
    assert direct.put(inactive | {"Estado_Sesion": 0}).status == 200
    logged = len(direct.service.log.splitlines())
    with refuse(direct.server), direct.redis() as redis:
        for flush in False, True:
            if flush:
                redis.script_flush()
            before = direct.check(token)
            time.sleep(1.1 * flush)
            for path in "/sesiones/self", "/sesiones/verificar":
                assert direct.check(token, path).status == 200
            assert direct.check(token).json() == before.json()  # seen, but not slid
            assert direct.check(inactive["Token_Sesion"]).status == 401
            assert direct.check(UNKNOWN).status == 401
            for reply in (
                direct.create(),
                direct.put(session),
                direct.put(session | {"Estado_Sesion": 0}),
                direct.end(token, token),
                direct.end(token, other["Token_Sesion"]),
                direct.end(token, token, "logoutAll"),
            ):
                assert_unavailable(reply)
        assert len(redis.keys("*:h:*")) == 3
    assert len(direct.service.log.splitlines()) - logged <= 4
    assert_recovers(direct, session)
    assert direct.check(other["Token_Sesion"]).status == 200


def test_a_replica_authenticates_nobody(direct: Deployment) -> None:
    session = direct.new_session()
    with cut_off(direct.server), direct.redis() as redis:
        assert redis.exists(*redis.keys("*:h:*")) == 1
        assert_out(direct, session)
    assert_recovers(direct, session)


@pytest.mark.parametrize("refuse", [noreplicas, misconf])
def test_a_replica_that_also_refuses_writes_authenticates_nobody(
    direct: Deployment, refuse: Callable[[RedisServer], contextlib.AbstractContextManager[None]]
) -> None:
    """Redis names the full disk first (MISCONF), not that it is a replica (READONLY)."""
    session = direct.new_session()
    with cut_off(direct.server), refuse(direct.server):
        assert_out(direct, session)
    assert_recovers(direct, session)


def test_a_replica_of_a_living_master(direct: Deployment) -> None:
    port = free_port()
    # Without the delay the master would wait 5 s for more replicas.
    with RedisServer(port=str(port), repl_diskless_sync_delay="0"), direct.redis() as redis:
        redis.replicaof("127.0.0.1", port)
        try:
            deadline = time.monotonic() + 10
            while redis.info("replication")["master_link_status"] != "up":
                assert time.monotonic() < deadline
                assert_unavailable(in_time(lambda: direct.create()))
                time.sleep(0.05)
            assert_unavailable(in_time(direct.create))
            assert_unavailable(in_time(lambda: direct.check(UNKNOWN)))
        finally:
            redis.replicaof("NO", "ONE")
        assert_recovers(direct, direct.new_session())
