"""Fixtures of the tests of the store."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis import Redis

from sesiones.store import SessionStore
from tests.harness.redis_server import RedisServer
from tests.harness.stores import Opener, open_store


@pytest.fixture
async def open_more(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Opener]:
    """Opens more stores, of other settings; on the server of the run, or another."""
    stores: list[SessionStore] = []

    def open_one(url: str = redis_server.url, **settings: Any) -> SessionStore:
        stores.append(open_store(url, **settings))
        return stores[-1]

    yield open_one
    for store in stores:
        await store.aclose()


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server that the test may break."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server that the tests of a module stop and reconfigure."""
    with RedisServer() as server:
        yield server
