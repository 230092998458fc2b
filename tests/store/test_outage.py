"""Redis fails: what the service answers, how soon, and how soon it is well again. All through the
process, over its socket.

Of a check the service promises an answer within twice SESIONES_REDIS_TIMEOUT, and recovery within
a second of Redis's, without a restart.
"""

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.harness.deployment import Deployment
from tests.harness.faults import Fault, cut_off, full, hung, misconf, noreplicas, stopped
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer
from tests.harness.service import Reply, Service
from tests.store.outages import (
    CHECK_SECONDS,
    RECOVERY_SECONDS,
    TIMEOUT_SECONDS,
    assert_out,
    assert_recovers,
    assert_unavailable,
    in_time,
)

UNKNOWN = "ses_" + "A" * 45


# Redis itself.


@pytest.fixture(scope="module")
def direct_service(server: RedisServer) -> Iterator[Service]:
    # Every check slides, so that the checks here are writes.
    with Service(
        SESIONES_REDIS_URL=server.url,
        SESIONES_REDIS_TIMEOUT=str(TIMEOUT_SECONDS),
        SESIONES_TOUCH_SECONDS="0",
    ) as service:
        yield service


@pytest.fixture
def direct(server: RedisServer, direct_service: Service) -> Deployment:
    deployment = Deployment(server, direct_service)
    with deployment.redis() as redis:
        redis.flushall()
    return deployment


@contextlib.contextmanager
def killed(server: RedisServer) -> Iterator[None]:
    server.wait_until_written()
    server.stop(signal.SIGKILL)
    try:
        yield
    finally:
        server.start()


@contextlib.contextmanager
def configured(server: RedisServer, setting: str, value: str, before: str) -> Iterator[None]:
    """The server has another setting, and its connections have to be opened again."""
    with server.client() as redis:
        redis.config_set(setting, value)
        try:
            redis.client_kill_filter(_type="normal", skipme=True)
            yield
        finally:
            redis.config_set(setting, before)


@contextlib.contextmanager
def replica_that(refuses: Fault, server: RedisServer) -> Iterator[None]:
    """Redis names the full disk first (MISCONF), not that it is a replica (READONLY)."""
    with cut_off(server), refuses(server):
        yield


OUTAGES: dict[str, Fault] = {
    "stopped": stopped,
    "killed": killed,
    "hung": hung,
    "wants a password": partial(configured, setting="requirepass", value="secreto", before=""),
    "takes one client": partial(configured, setting="maxclients", value="1", before="1000"),
    "is a replica": cut_off,
    "is a replica without replicas": partial(replica_that, noreplicas),
    "is a replica with a full disk": partial(replica_that, misconf),
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_outage_is_503_in_time_and_over_within_a_second(direct: Deployment, outage: str) -> None:
    """Nor does a replica authenticate a caller, though it has the session."""
    session = direct.new_session()
    with OUTAGES[outage](direct.server):
        assert_out(direct, session)
    assert_recovers(direct, session)


def test_service_that_starts_before_redis_serves_once_redis_is_there(server: RedisServer) -> None:
    with contextlib.ExitStack() as outage:
        outage.enter_context(stopped(server))
        with Service(
            SESIONES_REDIS_URL=server.url, SESIONES_REDIS_TIMEOUT=str(TIMEOUT_SECONDS)
        ) as service:
            deployment = Deployment(server, service)
            assert_unavailable(in_time(deployment.create))
            assert in_time(lambda: deployment.check("ses_"), 0.2).status == 401
            outage.close()
            begun = time.monotonic()
            while deployment.create().status != 201:
                assert time.monotonic() - begun < RECOVERY_SECONDS


def test_connection_that_redis_closed_costs_no_answer(direct: Deployment) -> None:
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


def test_outage_is_logged_when_it_begins_and_when_it_ends(server: RedisServer) -> None:
    with Service(
        SESIONES_REDIS_URL=server.url, SESIONES_REDIS_TIMEOUT=str(TIMEOUT_SECONDS)
    ) as service:
        deployment = Deployment(server, service)
        token = deployment.new_session()["Token_Sesion"]
        before = service.log
        with stopped(server):
            for _ in range(100):
                assert deployment.check(token).status == 503
        for _ in range(12):  # it is over when nothing has failed for a second
            assert deployment.check(token).status == 200
            time.sleep(0.1)
        begun, ended = service.log.removeprefix(before).splitlines()
        assert "ERROR sesiones.store: Redis is unavailable: " in begun
        assert re.search(r"INFO sesiones\.store: Redis is available again, after \d+\.\d s$", ended)


@pytest.mark.anyio
async def test_many_connections_in_an_outage_are_answered_in_time(direct: Deployment) -> None:
    """200 connections ask again and again while Redis hangs: each answer is in time, the log stays
    short, and all are served again within the second."""
    token = direct.new_session()["Token_Sesion"]
    request = f"GET /sesiones/self HTTP/1.1\r\nHost: x\r\nx-auth-token: {token}\r\n\r\n".encode()
    logged = len(direct.service.log.splitlines())
    unavailable: list[float] = []
    served: list[float] = []

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
    async with asyncio.timeout(20), asyncio.TaskGroup() as clients:
        with hung(direct.server):
            for _ in range(200):
                clients.create_task(client(back))
            await asyncio.sleep(1)
            assert not served
            back.set()
            returned = time.monotonic()
    assert len(unavailable) >= 400
    assert len(served) == 200
    assert max(served) - returned < RECOVERY_SECONDS
    assert max(unavailable) < CHECK_SECONDS + 0.3  # the 200 that ask want the machine, too
    assert len(direct.service.log.splitlines()) - logged <= 4


# Redis answers, but refuses.


def test_wrong_password_is_not_logged(server: RedisServer) -> None:
    with server.client() as redis:
        redis.acl_setuser(
            "sesiones", enabled=True, passwords="+right", keys="*", commands=["+@all"]
        )
    with Service(
        SESIONES_REDIS_URL=f"unix://sesiones:hunter2@{server.socket}",
        SESIONES_REDIS_TIMEOUT=str(TIMEOUT_SECONDS),
    ) as service:
        deployment = Deployment(server, service)
        for _ in range(3):
            assert_unavailable(in_time(deployment.create))
        with server.client() as redis:
            redis.acl_setuser("sesiones", enabled=True, passwords="+hunter2")
        assert_recovers(deployment, deployment.new_session())
        assert service.log.count("Redis is unavailable") == 1
        assert "hunter2" not in service.log


def test_full_redis_refuses_creating_and_changing_alone(direct: Deployment) -> None:
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


@pytest.mark.parametrize("refuse", [noreplicas, misconf])
def test_redis_that_refuses_writes_costs_no_check(direct: Deployment, refuse: Fault) -> None:
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


def test_replica_of_a_living_master_authenticates_no_caller(direct: Deployment) -> None:
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
