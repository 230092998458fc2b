"""Fixtures of the tests of the Redis client."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sesiones.redis_client import connection
from tests.harness.redis_server import RedisCluster
from tests.harness.virtual_loop import CLOCK


@pytest.fixture
async def no_complaint() -> AsyncIterator[list[dict[str, Any]]]:
    """Nothing is left for the event loop to complain of: each would be lines in a log."""
    gc.freeze()  # to look through the objects of earlier tests would take half a second
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    yield complaints
    gc.collect()
    gc.unfreeze()
    await asyncio.sleep(0)
    assert not complaints


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """Three masters, which the tests end and whose slots they move."""
    with RedisCluster(3) as cluster:
        yield cluster


@pytest.fixture
def virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection reads the clock of a VirtualLoop."""
    monkeypatch.setattr(connection, "time", CLOCK)
