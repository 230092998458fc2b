"""The service with a near-cache: two workers, another node, and a node without a cache, on one
Redis. What one of them ends or changes is seen by the others in time, and by its own workers at
once."""

import http.client
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from redis import Redis

from sesiones.redis_client.subscription import LEASE_SECONDS
from tests.harness.api import FORM, JSON, SERVICE
from tests.harness.records import session_key
from tests.harness.redis_server import RedisServer
from tests.harness.relay import Filter, Relay
from tests.harness.service import Reply, Service, children, comes_true, environment, read_reply
from tests.harness.stores import service_variables

ROUNDS = max(1, int(float(os.environ.get("SESIONES_TEST_ROUNDS", "1"))))
CACHED = {"SESIONES_CACHE_SECONDS": "60", "SESIONES_TOUCH_SECONDS": "60"}


MESSAGE_SECONDS = 0.2


class Services(NamedTuple):
    """``workers`` has two of them and a cache, ``node`` has a cache, ``strict`` has none. Redis's
    messages reach the workers late, so that only what they tell each other can be in time."""

    workers: Service
    node: Service
    strict: Service


@pytest.fixture(scope="module")
def services(redis_server: RedisServer) -> Iterator[Services]:
    shared = service_variables(redis_server.url)
    with (
        Relay(redis_server.socket, late_messages) as relay,
        Service(
            "--workers",
            "2",
            **shared | CACHED | {"SESIONES_REDIS_URL": f"redis://127.0.0.1:{relay.port}"},
        ) as workers,
        Service(**shared, **CACHED) as node,
        Service(**shared) as strict,
    ):
        yield Services(workers, node, strict)


def late_messages() -> Filter:
    """Of a relay: what a subscription receives comes late."""
    subscribed = False

    def passed(piece: bytes) -> bytes:
        nonlocal subscribed
        subscribed = subscribed or b"\r\nsubscribe\r\n" in piece
        if subscribed:
            time.sleep(MESSAGE_SECONDS)
        return piece

    return passed


class Connection:
    """A connection that is kept."""

    def __init__(self, service: Service) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        self._connection.connect()
        self._service = service

    def ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | str | None = None,
    ) -> Reply:
        self._connection.request(method, path, body, headers or {})
        return read_reply(self._connection)

    def check(self, token: str, **headers: str) -> Reply:
        return self.ask("GET", "/sesiones/self", {"x-auth-token": token} | headers)

    def is_worker(self, pid: int) -> bool:
        """Whether that process holds the other end."""
        here = self._connection.sock.getsockname()[1]
        ends = f":{self._service.port:04X}", f":{here:04X}"
        rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        inodes = {r[9] for r in rows if (r[1][-5:], r[2][-5:]) == ends}
        held = (
            os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()
        )
        return any(link == f"socket:[{inode}]" for link in held for inode in inodes)

    def close(self) -> None:
        self._connection.close()


Connect = Callable[[Service], Connection]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes connections that are closed at the end of the test."""
    with ExitStack() as stack:

        def opened(service: Service) -> Connection:
            connection = Connection(service)
            stack.callback(connection.close)
            return connection

        yield opened


@contextmanager
def both_workers(service: Service) -> Iterator[list[Connection]]:
    """A connection to each of the two workers."""
    assert service.process is not None
    with ExitStack() as stack:

        def connect(pid: int) -> Connection:
            while True:
                connection = Connection(service)
                stack.callback(connection.close)
                connection.ask("GET", "/livez")
                if connection.is_worker(pid):
                    return connection

        pids = [pid for pid in children(service.process.pid) if is_worker(pid)]
        assert len(pids) == 2
        yield [connect(pid) for pid in pids]


def is_worker(pid: int) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def create(connection: Connection, user: int = 7, **fields: Any) -> dict[str, Any]:
    body = orjson.dumps({"ID_Usuario": user, "Dispositivo": "laptop"} | fields)
    made = connection.ask("POST", "/sesiones", SERVICE | JSON, body)
    assert made.status == 201
    session: dict[str, Any] = made.json()
    return session


def owner(session: dict[str, Any]) -> dict[str, str]:
    return {"x-auth-token": session["Token_Sesion"]}


Way = Callable[[Connection, dict[str, Any], dict[str, Any]], Reply]
"""Ends the first session; the second one is another of the same user."""

WAYS: list[Way] = [
    lambda c, s, _: c.ask("DELETE", f"/sesiones/logout?Token_Sesion={s['Token_Sesion']}", owner(s)),
    lambda c, s, _: c.ask(
        "DELETE", f"/sesiones/logoutAll?Token_Sesion={s['Token_Sesion']}", owner(s)
    ),
    lambda c, s, other: c.ask(
        "DELETE", f"/sesiones/logout?Token_Sesion={s['Token_Sesion']}", owner(other)
    ),
    lambda c, _, other: c.ask("DELETE", "/sesiones/logoutOthers", owner(other)),
    lambda c, s, other: c.ask("DELETE", f"/sesiones/{s['ID_Sesion']}", owner(other)),
    lambda c, s, _: c.ask("DELETE", f"/sesiones/usuarios/{s['ID_Usuario']}", SERVICE),
    lambda c, s, _: c.ask(
        "DELETE", f"/sesiones/usuarios/{s['ID_Usuario']}/{s['ID_Sesion']}", SERVICE
    ),
    lambda c, s, _: c.ask(
        "POST", "/sesiones/revocacion", SERVICE | FORM, f"token={s['Token_Sesion']}"
    ),
    lambda c, s, _: c.ask(
        "PUT", "/sesiones", SERVICE | JSON, orjson.dumps(s | {"Estado_Sesion": 0})
    ),
    lambda c, s, _: _login(c, s, Token_Anterior=s["Token_Sesion"]),
    lambda c, s, _: _login(c, s, Cerrar_Otras=1),
    lambda c, s, _: _login(c, s, Max_Sesiones=1),
    lambda c, s, _: _login(c, s, Sustituye=s["ID_Sesion"]),
]


def _login(connection: Connection, session: dict[str, Any], **fields: Any) -> Reply:
    body = {"ID_Usuario": session["ID_Usuario"], "Dispositivo": "tablet"} | fields
    return connection.ask("POST", "/sesiones", SERVICE | JSON, orjson.dumps(body))


@contextmanager
def hammered(service: Service, tokens: list[str], threads: int) -> Iterator[None]:
    """Meanwhile other connections check the newest token all the time: reads are in flight."""
    over = threading.Event()

    def hammer() -> None:
        connection = Connection(service)
        while not over.is_set():
            connection.check(tokens[-1])
        connection.close()

    running = [threading.Thread(target=hammer) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in running:
            thread.join()


def hits(service: Service) -> float:
    """Checks that were answered from memory."""
    lines = service.request("GET", "/metrics").body.decode().splitlines()
    name = 'sesiones_cache_lookups_total{outcome="hit"} '
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def becomes_hit(service: Service, connection: Connection, token: str) -> None:
    def is_hit() -> bool:
        before = hits(service)
        assert connection.check(token).status == 200
        return hits(service) > before

    assert comes_true(is_hit, 10)


def play_endings(services: Services, rounds: int, threads: int) -> None:
    with both_workers(services.workers) as workers, ExitStack() as stack:
        tokens = [create(workers[0])["Token_Sesion"]]
        for worker in workers:
            becomes_hit(services.workers, worker, tokens[0])
        stack.enter_context(hammered(services.workers, tokens, threads))
        for number, way in zip(range(rounds), itertools.cycle(WAYS), strict=False):
            ender = workers[number % 2]
            session, other = create(ender, 1000 + number), create(ender, 1000 + number)
            tokens.append(session["Token_Sesion"])
            for connection in workers * 2:
                assert connection.check(tokens[-1]).status == 200
            assert way(ender, session, other).status in (200, 201)
            answers = [connection.check(tokens[-1]).status for connection in workers * 2]
            assert answers == [401] * 4, (number, WAYS.index(way))


def test_ending_is_seen_at_once_by_both_workers(services: Services) -> None:
    play_endings(services, 2 * len(WAYS), threads=1)


@pytest.mark.slow
def test_hundreds_of_endings_are_seen_at_once_by_both_workers(services: Services) -> None:
    play_endings(services, 250 * ROUNDS, threads=2)


def refused_in_time(connection: Connection, token: str) -> float:
    """Ask until it is refused: the last 200 was asked for within the lease."""
    since = asked = time.monotonic()
    while connection.check(token).status == 200:
        asked = time.monotonic()
        assert asked < since + 2 * LEASE_SECONDS
    return asked - since


@pytest.mark.parametrize("ender", ["workers", "strict"])
def test_ending_by_another_node_is_seen_in_time(
    services: Services, connect: Connect, ender: str
) -> None:
    node, ending = connect(services.node), connect(getattr(services, ender))
    lags = []
    for number, way in enumerate(WAYS):
        session, other = create(ending, 500_000 + number), create(ending, 500_000 + number)
        becomes_hit(services.node, node, session["Token_Sesion"])
        assert way(ending, session, other).status in (200, 201)
        lags.append(refused_in_time(node, session["Token_Sesion"]))
    assert max(lags) < LEASE_SECONDS
    assert sorted(lags)[len(lags) // 2] < LEASE_SECONDS / 2  # the message, not the end of a lease


def test_ending_by_an_operator_is_seen_in_time(
    services: Services, connect: Connect, redis_server: RedisServer
) -> None:
    node = connect(services.node)
    session = create(node, 600_000)
    becomes_hit(services.node, node, session["Token_Sesion"])
    command = [sys.executable, "-m", "sesiones", "users", "600000", "--end-all"]
    variables = environment() | {"SESIONES_REDIS_URL": redis_server.url}
    subprocess.run(command, env=variables, check=True, capture_output=True)
    assert refused_in_time(node, session["Token_Sesion"]) < LEASE_SECONDS


def test_change_is_seen_at_once_by_both_workers_and_in_time_by_another_node(
    services: Services, connect: Connect
) -> None:
    node = connect(services.node)
    with both_workers(services.workers) as workers:
        session = create(workers[0], 700_000)
        token = session["Token_Sesion"]
        for number, worker in enumerate(workers * 3):
            becomes_hit(services.node, node, token)
            for each in workers:
                assert each.check(token).status == 200
            changed = session | {"Dispositivo": f"tablet {number}"}
            assert (
                worker.ask("PUT", "/sesiones", SERVICE | JSON, orjson.dumps(changed)).status == 200
            )
            since = time.monotonic()
            for each in workers * 2:
                assert each.check(token).json()["Dispositivo"] == f"tablet {number}"
            asked = time.monotonic()
            while node.check(token).json()["Dispositivo"] != f"tablet {number}":
                assert asked < since + LEASE_SECONDS
                asked = time.monotonic()


@pytest.mark.parametrize(
    "value", ["no-cache", "NO-CACHE", "max-age=0, no-cache", "max-age=0 ,No-Cache", 'no-cache="x"']
)
@pytest.mark.parametrize("other", [{}, {"Expect": "x"}])
def test_request_that_asks_for_fresh_is_not_answered_from_memory(
    services: Services, connect: Connect, value: str, other: dict[str, str]
) -> None:
    """``other``: a field that makes the request one for Starlette."""
    node = connect(services.node)
    token = create(node, 800_000)["Token_Sesion"]
    becomes_hit(services.node, node, token)
    before = hits(services.node)
    for _ in range(4):  # a template is known from the second one on
        assert node.check(token, **{"Cache-Control": value}, **other).status == 200
    assert hits(services.node) == before
    for _ in range(4):
        assert node.check(token, **{"Cache-Control": "no-store, no-cachex"}, **other).status == 200
    assert hits(services.node) == before + 4


def test_session_that_redis_no_longer_has_is_not_answered_from_memory_again(
    services: Services, connect: Connect, redis: Redis
) -> None:
    """A request that asked for fresh has told the node, though no message has."""
    node = connect(services.node)
    token = create(node, 800_001)["Token_Sesion"]
    becomes_hit(services.node, node, token)
    redis.delete(session_key(token))
    assert node.check(token).status == 200
    assert node.check(token, **{"Cache-Control": "no-cache"}).status == 401
    assert node.check(token).status == 401


@pytest.mark.slow
def test_last_use_is_as_exact_as_without_a_cache(
    redis_server: RedisServer, connect: Connect
) -> None:
    """By the second, with the default of SESIONES_TOUCH_SECONDS; and so is the expiry. The Date of
    an answer from memory is that of the moment."""
    variables = service_variables(redis_server.url)
    with Service("--cache-seconds", "60", **variables) as service:
        connection = connect(service)
        token = create(connection, 900_000, Ventana=600)["Token_Sesion"]
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            before = time.time()
            reply = connection.check(token)
            after = time.time()
            session = reply.json()
            assert int(before) <= session["Ultima_Actividad"] <= int(after)
            assert session["Fecha_Expiracion"] == session["Ultima_Actividad"] + 600
            date = parsedate_to_datetime(reply.headers["date"]).timestamp()
            assert int(before) - 1.5 <= date <= after
        assert hits(service) > 100


@pytest.mark.slow
def test_session_expires_at_its_second_on_every_node(services: Services, connect: Connect) -> None:
    node = connect(services.node)
    session = create(node, 900_001, Ventana=5, Vida_Maxima=5)
    token, expiry = session["Token_Sesion"], session["Fecha_Expiracion"]
    before = hits(services.node)
    asked = time.time()
    while node.check(token).status == 200:
        assert asked < expiry
        asked = time.time()
    assert time.time() >= expiry
    assert hits(services.node) > before + 100
