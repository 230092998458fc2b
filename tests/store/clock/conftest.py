"""Fixtures of the tests on fakeredis, with a clock that only the test moves. They take the place of
those of the real server."""

from collections.abc import AsyncIterator
from functools import partial

import pytest
from redis import Redis

from sesiones.store import SessionStore
from sesiones.testing import Clock, ClockedRedis, session_clock
from tests.harness.stores import Opener, store_on

__all__ = ["session_clock"]  # a fixture: the tests of this folder get it from here


@pytest.fixture
def clock(session_clock: Clock) -> Clock:
    return session_clock


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
