"""Fixtures: a real Redis or Valkey server, a store on it, and the service as a process."""

import logging
from collections.abc import AsyncIterator, Iterator
from unittest.mock import patch

import pytest
from hypothesis import settings
from redis import Redis

from sesiones.store import SessionStore
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisCluster, RedisSentinels, RedisServer
from tests.harness.run_record import RunRecord
from tests.harness.service import TOKEN, Service
from tests.harness.stores import open_store, service_variables

# A busy machine makes any example slow: the time of one says nothing about the code.
settings.register_profile("sesiones", deadline=None)
settings.load_profile("sesiones")


class _TokensLogged(logging.Handler):
    """Looks for tokens in what the code under test logs in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = logging.Formatter().format(record)
        if TOKEN.search(text):
            self.found.append(text)


@pytest.fixture(scope="session", autouse=True)
def no_token_in_any_log() -> Iterator[None]:
    """Of the whole run; Service looks through the logs of its processes."""
    handler = _TokensLogged()
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)
    assert handler.found == []


@pytest.fixture(scope="session", autouse=True)
def no_operation_is_slow() -> Iterator[None]:
    """A busy machine makes any operation slow, and tests compare the lines that are logged."""
    with patch("sesiones.store.timings.SLOW_SECONDS", 60.0):
        yield


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RunRecord())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "redis_server" in fixtures:
            item.add_marker("redis")
        if "cluster" in fixtures:
            item.add_marker("cluster")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A server of the whole run. Tests that stop or reconfigure one start their own."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[RedisCluster]:
    """Three masters, of the whole run: a new Cluster takes no writes for two seconds. Tests that
    end a node or move slots start their own."""
    with RedisCluster(3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster(shared_cluster: RedisCluster) -> RedisCluster:
    """Three masters, which are empty."""
    shared_cluster.empty()
    return shared_cluster


@pytest.fixture(
    scope="module",
    params=[
        "server",
        pytest.param("sentinel", marks=pytest.mark.sentinel),
        pytest.param("cluster", marks=pytest.mark.cluster),
    ],
)
def deployment_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a server, of a master with Sentinels, or of a Cluster of three masters."""
    if request.param == "server":
        with RedisServer(port=str(free_port())) as server:
            yield f"redis://127.0.0.1:{server.port}"
    elif request.param == "sentinel":
        with RedisSentinels(1, down_after_milliseconds=5000) as sentinels:
            yield sentinels.url
    else:
        shared: RedisCluster = request.getfixturevalue("shared_cluster")
        shared.empty()
        yield shared.url


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator["Redis"]:
    """A plain client on the emptied server, to see what is really there."""
    with redis_server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
async def store(redis_server: RedisServer, redis: "Redis") -> AsyncIterator[SessionStore]:
    store = open_store(redis_server.url)
    yield store
    await store.aclose()


@pytest.fixture(scope="session")
def service(redis_server: RedisServer) -> Iterator[Service]:
    """The service as a process, with a service key; its sessions are never flushed under it by
    the `redis` fixture unless the test asks for both."""
    with Service(**service_variables(redis_server.url)) as service:
        yield service
