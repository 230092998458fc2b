"""A million sessions: how much memory each takes, and that a logoutAll costs only its own user's.

Ten sessions a user, made as scripts/seed.py makes them. A second server holds a tenth of them, more
than a processor's caches, too; the same logoutAll is tried on both in turn, and its time is Redis's
own, from its statistics.
"""

import asyncio
import dataclasses
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import uvloop

from scripts import seed
from scripts.chaos import Bar
from sesiones.settings import Settings
from sesiones.store import SessionStore
from sesiones.store.from_settings import open_store
from tests.harness.redis_server import RedisServer

TOTAL, SHORT_TOTAL = 1_000_000, 10_000
FEWER = 10
EACH = 10
"""Sessions of a user."""
BYTES, SHORT_BYTES = 345, 460
"""Of a session. Some thousands do not share the counters and the tables well: the short form
notices a layout that has been lost, no more."""
RATIO, SHORT_RATIO = 1.5, 3.0
"""Between logoutAlls that should cost the same."""
USERS, SHORT_USERS = 50, 20
"""Whose logoutAll is timed."""
SIZES, SHORT_SIZES = (1, 10, 100, 1000), (1, 10, 100)
"""Sessions of one user, who ends them all."""
SETTLING_SECONDS = 120


class Stored:
    """A server with sessions in it."""

    def __init__(self, stack: ExitStack) -> None:
        server = stack.enter_context(RedisServer(enable_debug_command="local"))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sesiones-million-"))
        self.redis = stack.enter_context(server.client())
        self._folder = Path(folder)
        self._settings = dataclasses.replace(
            Settings(), redis_url=server.url, redis_timeout=10.0, idle_seconds=43_200
        )

    @property
    def name(self) -> str:
        info = self.redis.info("server")
        valkey = info.get("valkey_version")
        return f"Valkey {valkey}" if valkey else f"Redis {info['redis_version']}"

    def fill(self, users: int, each: int, prefix: str = "sesiones") -> list[list[str]]:
        """Users with as many sessions each, under a prefix of their own: their tokens."""
        settings = dataclasses.replace(self._settings, key_prefix=prefix)
        sessions = seed.seed(settings, self._folder / prefix, users, each)
        made = [token for _, token in sessions]
        return [made[first : first + each] for first in range(0, len(made), each)]

    def settle(self) -> None:
        """Until nothing is being rewritten and no table grows: until then there are two of it, and
        commands move it on."""
        deadline = time.monotonic() + SETTLING_SECONDS
        while True:
            rewrites = self.redis.info("persistence")["aof_rewrite_in_progress"]
            tables = self.redis.execute_command("DEBUG", "HTSTATS", "0")
            if not rewrites and "rehashing target" not in str(tables):
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"Redis is still not done after {SETTLING_SECONDS} s")
            time.sleep(0.5)

    def used_memory(self) -> int:
        """Without the buffers of clients and of the append-only file."""
        self.settle()
        info = self.redis.info("memory")
        return int(info["used_memory"] - info["mem_clients_normal"] - info["mem_aof_buffer"])

    def store(self, prefix: str = "sesiones") -> SessionStore:
        return open_store(dataclasses.replace(self._settings, key_prefix=prefix))

    async def log_out(self, store: SessionStore, user: list[str]) -> int:
        """Microseconds that Redis took to end all sessions of the user."""
        self.redis.config_resetstat()
        ended = await store.end_all(user[0], user[0])
        if ended != len(user):
            raise RuntimeError(f"logoutAll ended {ended} of {len(user)} sessions")
        # Not from the slow log: to have all, it logs each command of the script as well, which
        # takes time of its own.
        return int(self.redis.info("commandstats")["cmdstat_evalsha"]["usec"])


def play(short: bool) -> Iterator[Bar]:
    total = SHORT_TOTAL if short else TOTAL
    fewer = total // FEWER
    users = SHORT_USERS if short else USERS
    ratio = SHORT_RATIO if short else RATIO
    with ExitStack() as stack:
        full, few = Stored(stack), Stored(stack)
        uvloop.run(_load_scripts(full, few))
        empty = full.used_memory()
        everyone = full.fill(total // EACH, EACH)
        each = (full.used_memory() - empty) / total
        limit = SHORT_BYTES if short else BYTES
        yield Bar(
            f"a session takes at most {limit} bytes of used_memory where there are {total:,}, "
            f"{EACH} of each user, the index and everything else included",
            f"{each:.0f} bytes on {full.name}",
            each <= limit,
        )

        some = few.fill(fewer // EACH, EACH)
        few.settle()
        chosen = random.sample(everyone, users), random.sample(some, users)
        in_full, in_few = uvloop.run(_in_turn(full, few, *chosen))
        yield Bar(
            f"a logoutAll costs at most {ratio} times as much with {total:,} sessions as with "
            f"{fewer:,}, for a user with as many",
            f"{in_full:.0f} us to {in_few:.0f} us, {in_full / in_few:.2f} times as much",
            in_full <= ratio * in_few,
        )

        sizes = SHORT_SIZES if short else SIZES
        costs = {size: uvloop.run(_of_size(full, size, users)) for size in sizes}
        _, small, *_, most = sizes
        yield Bar(
            "and it grows with the user's own sessions: ending one costs at most "
            f"{ratio} times as much among {most:,} as among {small}",
            ", ".join(f"{size:,}: {cost:.0f} us" for size, cost in costs.items()),
            costs[most] / most <= ratio * costs[small] / small,
        )


async def _load_scripts(*servers: Stored) -> None:
    for stored in servers:
        async with stored.store() as store:
            await store.probe(10)


async def _in_turn(
    one: Stored, other: Stored, of_one: list[list[str]], of_other: list[list[str]]
) -> tuple[float, float]:
    """The median costs of the users' logoutAlls on two servers, in turn: what else the machine
    does slows both down."""
    costs = []
    async with one.store() as in_one, other.store() as in_other:
        for users in zip(of_one, of_other, strict=True):
            pairs = zip((one, other), (in_one, in_other), users, strict=True)
            costs.append([await stored.log_out(store, user) for stored, store, user in pairs])
    first, second = (statistics.median(times) for times in zip(*costs, strict=True))
    return first, second


async def _of_size(stored: Stored, size: int, users: int) -> float:
    """The median cost of the logoutAlls of users with so many sessions."""
    prefix = f"of-{size}"
    # Of the largest there need not be so many.
    made = await asyncio.to_thread(stored.fill, min(users, max(5, 2000 // size)), size, prefix)
    async with stored.store(prefix) as store:
        return statistics.median([await stored.log_out(store, user) for user in made])
