"""Fixtures of the tests on fakeredis, with a clock that only the test moves. They take the place of
those of the real server."""

from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
from redis import Redis

from sesiones.store import SessionStore
from sesiones.testing import Clock, ClockedRedis
from tests.harness.stores import Opener, store_on


@pytest.fixture
def clock() -> Iterator[Clock]:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        clock.install(patch)
        yield clock


@pytest.fixture
async def fake(clock: Clock) -> AsyncIterator[ClockedRedis]:
    fake = ClockedRedis()
    yield fake
    await fake.aclose()


@pytest.fixture
def redis(fake: ClockedRedis) -> Redis:
    """A plain client, to see what is really there."""
    return fake.redis


@pytest.fixture
def open_more(fake: ClockedRedis) -> Opener:
    return partial(store_on, fake)


@pytest.fixture
def store(open_more: Opener) -> SessionStore:
    return open_more()
