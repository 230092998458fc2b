"""Fixtures of the tests of the Redis client."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sesiones.redis_client import connection
from tests.harness.redis_server import RedisCluster, RedisSentinels, RedisServer, free_port
from tests.harness.virtual_loop import CLOCK

KINDS = [
    "server",
    pytest.param("sentinel", marks=pytest.mark.sentinel),
    pytest.param("cluster", marks=pytest.mark.cluster),
]


@pytest.fixture(scope="module", params=KINDS)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a server, a master with Sentinels, or a Cluster of three masters."""
    if request.param == "server":
        with RedisServer(port=str(free_port())) as server:
            yield f"redis://127.0.0.1:{server.port}"
    elif request.param == "sentinel":
        with RedisSentinels(1, down_after_milliseconds=5000) as sentinels:
            yield sentinels.url
    else:
        with RedisCluster(3) as cluster:
            yield cluster.url


@pytest.fixture
async def no_complaint() -> AsyncIterator[list[dict[str, Any]]]:
    """Nothing is left for the event loop to complain of: each would be lines in a log."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    yield complaints
    gc.collect()
    await asyncio.sleep(0)
    assert not complaints


@pytest.fixture
def virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection reads the clock of a VirtualLoop."""
    monkeypatch.setattr(connection, "time", CLOCK)
