"""Health: the process lives; Redis answers in time, takes writes and has the scripts."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from redis.exceptions import ResponseError

from sesiones.http.operations import Health
from sesiones.http.problems import Problem
from sesiones.redis_client import Argument
from sesiones.store.scripts import SERVICE_SCRIPTS
from sesiones.testing import ClockedRedis
from tests.harness.deployment import Deployment
from tests.harness.faults import client, cut_off, full, hung, misconf, noreplicas
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service
from tests.harness.stores import KEY, store_on

READY = ["/readyz", "/healthz"]
Trouble = Callable[[RedisServer], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def probed(server: RedisServer) -> Iterator[Deployment]:
    with Service("--access-log", "1", SESIONES_REDIS_URL=server.url) as service:
        yield Deployment(server, service)


def refused(service: Service, path: str = "/readyz") -> str:
    begun = time.monotonic()
    reply = service.request("GET", path)
    assert time.monotonic() - begun < 0.6  # 0.2, and what a busy machine may add
    assert reply.status == 503
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["retry-after"] == "1"
    detail: str = reply.json()["detail"]
    return detail


@pytest.mark.parametrize("path", ["/livez", *READY])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_service_that_is_well_is_ready(probed: Deployment, method: str, path: str) -> None:
    reply = probed.service.request(method, path)
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["content-length"] == "0"
    assert reply.headers["cache-control"] == "no-store"


def test_probe_writes_nothing(probed: Deployment) -> None:
    with probed.redis() as redis:
        before = redis.info("persistence")["rdb_changes_since_last_save"]
        for _ in range(3):
            assert probed.service.request("GET", "/readyz").status == 200
        assert redis.dbsize() == 0
        assert redis.info("persistence")["rdb_changes_since_last_save"] == before


def test_probe_loads_the_scripts(probed: Deployment) -> None:
    with probed.redis() as redis:
        redis.script_flush()
        assert probed.service.request("GET", "/readyz").status == 200
        loaded = redis.info("memory")["number_of_cached_scripts"]
        assert loaded == len(SERVICE_SCRIPTS)


def test_probes_are_not_logged(probed: Deployment) -> None:
    before = probed.service.log
    for path in "/livez", "/readyz", "/healthz?x":
        probed.service.request("GET", path)
    assert probed.service.log == before
    probed.service.request("GET", "/sesiones/self")
    assert '"GET /sesiones/self HTTP/1.1" 401' in probed.service.log


@contextmanager
def without_permission(server: RedisServer) -> Iterator[None]:
    with client(server) as redis:
        redis.acl_setuser("default", enabled=True, commands=["-evalsha"])
        yield
        redis.acl_setuser("default", enabled=True, commands=["+evalsha"])


@contextmanager
def without_credentials(server: RedisServer) -> Iterator[None]:
    with client(server) as redis:
        redis.config_set("requirepass", "hunter2")
        redis.client_kill_filter(_type="normal", skipme=True)
        yield
        redis.config_set("requirepass", "")


@pytest.mark.parametrize("path", READY)
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (full, "memoria"),
        (noreplicas, "faltan réplicas"),
        (misconf, "guardar en disco"),
        (cut_off, "es una réplica"),
        (without_permission, "falta un permiso"),
        (without_credentials, "pide credenciales"),
    ],
)
def test_redis_that_refuses_is_not_ready_and_named(
    probed: Deployment, path: str, trouble: Trouble, reason: str
) -> None:
    with trouble(probed.server):
        for _ in range(2):
            assert reason in refused(probed.service, path)
        assert probed.service.request("GET", "/livez").status == 200
        assert "hunter2" not in probed.service.log
    assert probed.service.request("GET", path).status == 200
    with probed.redis() as redis:
        assert redis.dbsize() == 0


def test_redis_that_hangs_is_not_ready_in_time(probed: Deployment) -> None:
    with hung(probed.server):
        assert "no responde en 200 ms" in refused(probed.service)
        assert probed.service.request("GET", "/livez").status == 200
    assert probed.service.request("GET", "/readyz").status == 200


def test_redis_that_is_away_is_not_ready() -> None:
    with Service(SESIONES_REDIS_URL="redis://user:hunter2@127.0.0.1:1/0") as service:
        detail = refused(service)
        assert detail == "No hay conexión con Redis, o rechaza las órdenes."
        assert service.request("GET", "/livez").status == 200


class Old(ClockedRedis):
    """Redis 6: "#" begins no comment of Lua's."""

    async def execute(self, *arguments: Argument, **how: object) -> object:
        if arguments[:2] == ("SCRIPT", "EXISTS"):
            return [0] * (len(arguments) - 2)
        raise ResponseError(
            "Error compiling script (new function): user_script:1: unexpected symbol near '#'",
            status_code="ERR",
        )


@pytest.mark.anyio
async def test_redis_that_is_too_old_is_not_ready() -> None:
    store = store_on(Old(), timeout_seconds=1)
    with pytest.raises(Problem, match=r"anterior a la 7\.0"):
        await Health(store).ready(None)  # type: ignore[arg-type]
    await store.aclose()


def test_probes_need_no_service_key(service: Service) -> None:
    """Health asks for no credential, and minds none."""
    for headers in {}, {"Authorization": f"Bearer {KEY}"}, {"x-auth-token": "x"}:
        assert service.request("GET", "/readyz", headers).status == 200
