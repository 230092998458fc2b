"""What a user with many sessions costs: how long a check of another user waits meanwhile.

``python -m scripts.user_limit`` prints a row for each number of sessions. REDIS_SERVER names
another server than the first on PATH.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable
from statistics import median
from typing import Any

import uvloop

from sesiones.store import SessionStore
from tests.harness.redis_server import RedisServer

SESSIONS = 1000, 10_000
ROUNDS = 5
TIMEOUT_SECONDS = 10.0


async def measure() -> None:
    print("| sessions | logoutAll | create at the limit | create that ends all of them |")
    print("|---|---|---|---|")
    for sessions in SESSIONS:
        rounds = [await _round(sessions) for _ in range(ROUNDS)]
        cells = (f"{median(seconds) * 1000:.1f} ms" for seconds in zip(*rounds, strict=True))
        print(f"| {sessions:,} | {' | '.join(cells)} |", flush=True)


async def _round(sessions: int) -> tuple[float, float, float]:
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
            end_all = await _beside(store, bystander, store.end_all(tokens[0], ""))
            await _fill(store, sessions)
            at_limit = await _beside(store, bystander, store.create(7, "laptop"))
            trim = await _beside(store, bystander, lowered.create(7, "laptop"))
    return end_all, at_limit, trim


async def _fill(store: SessionStore, sessions: int) -> list[str]:
    made = []
    for _ in range(0, sessions, 100):
        made += await asyncio.gather(*(store.create(7, "laptop") for _ in range(100)))
    return [sesion.Token_Sesion for sesion in made]


async def _beside(store: SessionStore, token: str, operation: Awaitable[Any]) -> float:
    """The longest that a check takes beside the operation."""
    running = asyncio.ensure_future(operation)
    longest = 0.0
    while not running.done():
        begun = time.perf_counter()
        assert await store.find(token) is not None
        longest = max(longest, time.perf_counter() - begun)
    await running
    return longest


if __name__ == "__main__":
    logging.getLogger("sesiones").addHandler(logging.NullHandler())  # which warns of what is slow
    uvloop.run(measure())
