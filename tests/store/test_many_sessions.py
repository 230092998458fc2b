"""A user with thousands of sessions: what ends them all holds up no other check for long."""

import asyncio
import logging
import os
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from sesiones import logs
from sesiones.store import SessionStore
from tests.harness.redis_server import RedisServer
from tests.harness.stores import open_store

pytestmark = pytest.mark.anyio

ROUNDS = 3
"""The best one counts: what else runs on the machine delays checks, too."""


@pytest.fixture(autouse=True)
def emptied(redis: Redis) -> None:
    """Other tests leave keys of the wrong type for the same users."""


@pytest.fixture
def real_log() -> Iterator[None]:
    """The service's own formatter and stream: lines of log cost what they cost there."""
    with open(os.devnull, "w") as stream:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logs.JsonFormatter())
        logger = logging.getLogger("sesiones")
        logger.addHandler(handler)
        level = logger.level
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)


async def slowest_check(store: SessionStore, token: str, until: asyncio.Event) -> float:
    """The seconds of the slowest of checks that follow one another."""
    slowest = 0.0
    while not until.is_set():
        begun = time.monotonic()
        assert await store.find(token) is not None
        slowest = max(slowest, time.monotonic() - begun)
        await asyncio.sleep(0.001)
    return slowest


@pytest.mark.parametrize(
    ("sessions", "delay_seconds"),
    [(1000, 0.040), pytest.param(10_000, 0.150, marks=pytest.mark.slow)],
)
async def test_large_logout_all_hardly_delays_checks(
    redis_server: RedisServer,
    real_log: None,
    caplog: pytest.LogCaptureFixture,
    sessions: int,
    delay_seconds: float,
) -> None:
    delays = []
    async with open_store(redis_server.url, timeout_seconds=0.25, max_per_user=sessions) as store:
        other = (await store.create(1, "laptop")).Token_Sesion
        for _ in range(ROUNDS):
            caplog.set_level(logging.WARNING)
            tokens = [(await store.create(2, "laptop")).Token_Sesion for _ in range(sessions)]
            measured = []
            for end in False, True:
                done = asyncio.Event()
                checks = [asyncio.create_task(slowest_check(store, other, done)) for _ in range(4)]
                await asyncio.sleep(0.2)
                if end:
                    caplog.set_level(logging.INFO)
                    caplog.clear()
                    assert await store.end_all(tokens[0], "") == sessions
                    await asyncio.sleep(0.5)  # the lines of the log come after the answer
                done.set()
                measured.append(max(await asyncio.gather(*checks)))
            delays.append(measured[1] - measured[0])
            if min(delays) < delay_seconds:
                break
    assert min(delays) < delay_seconds
    lines = [line for line in caplog.messages if ": logout_all by session " in line]
    assert len(lines) == len(set(lines)) == sessions


async def test_log_lines_of_a_large_logout_all_survive_the_end_of_the_store(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = open_store(redis_server.url)
    token = ""
    for _ in range(300):
        token = (await store.create(3, "laptop")).Token_Sesion
    ended = await store.end_all(token, "")
    await store.aclose()
    assert sum(": logout_all by session " in line for line in caplog.messages) == ended
