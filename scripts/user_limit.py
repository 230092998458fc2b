"""What a user with many sessions costs: how long a check of another user waits meanwhile.

``python -m scripts.user_limit`` prints a row for each number of sessions: the longest check beside
each operation that reads or ends them all, and for the owner's list and logoutOthers how long they
take themselves. REDIS_SERVER names another server than the first on PATH.
"""

import argparse
import asyncio
import logging
import time
from collections.abc import Awaitable
from statistics import median
from typing import Any

import uvloop

from sesiones.store import SessionStore
from tests.harness.redis_server import RedisServer

SESSIONS = 10, 100, 1000, 10_000
ROUNDS = 5
TIMEOUT_SECONDS = 10.0
COLUMNS = (
    *("list", "checks beside it", "logoutOthers", "checks beside it"),
    *("checks beside logoutAll", "beside a create at the limit"),
    "beside a create that ends all of them",
)


async def measure() -> None:
    print(f"| sessions | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for sessions in SESSIONS:
        rounds = [await _round(sessions) for _ in range(ROUNDS)]
        cells = (f"{median(seconds) * 1000:.1f} ms" for seconds in zip(*rounds, strict=True))
        print(f"| {sessions:,} | {' | '.join(cells)} |", flush=True)


async def _round(sessions: int) -> list[float]:
    with RedisServer() as server:
        store, lowered = (
            SessionStore.from_url(
                server.url, timeout_seconds=TIMEOUT_SECONDS, max_per_user=max_per_user
            )
            for max_per_user in (sessions, 1)
        )
        async with store, lowered:
            bystander = (await store.create(8, "laptop")).Token_Sesion
            tokens = await _fill(store, sessions)
            seconds = [*await _beside(store, bystander, store.list_sessions(tokens[0]))]
            seconds += await _beside(store, bystander, store.end_others(tokens[0]))
            tokens = await _fill(store, sessions)
            seconds += (await _beside(store, bystander, store.end_all(tokens[0], "")))[1:]
            await _fill(store, sessions)
            seconds += (await _beside(store, bystander, store.create(7, "laptop")))[1:]
            seconds += (await _beside(store, bystander, lowered.create(7, "laptop")))[1:]
    return seconds


async def _fill(store: SessionStore, sessions: int) -> list[str]:
    made = []
    for first in range(0, sessions, 100):
        creates = (store.create(7, "laptop") for _ in range(min(100, sessions - first)))
        made += await asyncio.gather(*creates)
    return [sesion.Token_Sesion for sesion in made]


async def _beside(
    store: SessionStore, token: str, operation: Awaitable[Any]
) -> tuple[float, float]:
    """How long the operation takes, and the longest that a check takes beside it."""
    begun = time.perf_counter()
    ended = begun

    async def timed() -> None:
        nonlocal ended
        await operation
        ended = time.perf_counter()

    running = asyncio.ensure_future(timed())
    longest = 0.0
    while not running.done():
        asked = time.perf_counter()
        assert await store.find(token) is not None
        longest = max(longest, time.perf_counter() - asked)
    await running
    return ended - begun, longest


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    logging.getLogger("sesiones").addHandler(logging.NullHandler())  # which warns of what is slow
    uvloop.run(measure())
