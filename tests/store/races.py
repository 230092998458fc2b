"""Scenarios for thousands of users on several nodes, many at a time, while an observer on a
connection of its own looks at everything in Redis."""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sesiones.redis_client import Commands, connect
from sesiones.sesion import Sesion
from sesiones.store import SessionStore
from tests.harness.records import session_key
from tests.harness.redis_server import RedisServer
from tests.harness.stores import store_on

ROUNDS = max(1, int(500 * float(os.environ.get("SESIONES_TEST_ROUNDS", "1"))))
"""Users per scenario."""
ROUNDS_UNTIL = max(3000, ROUNDS)
"""The most of them until something goes wrong that has to."""
AT_ONCE = 50
"""Users that are served at the same time."""
NODES = 4
"""Stores, each with a connection of its own."""
PER_USER = 4
"""Sessions a user may have."""


OBSERVE = """#!lua flags=no-writes
local now = tonumber(redis.call('TIME')[1])
local wrong = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local base, kind, name = string.match(key, '^([^}]*}:)(%a):?(.*)$')
  local expiry = redis.call('EXPIRETIME', key)
  if kind ~= 'n' and expiry == -1 then
    wrong[#wrong + 1] = key .. ' has no expiry'
  elseif kind == 'h' and expiry > now then
    local text = redis.call('HGET', key, '1') or ''
    local user = string.match(text, '^%d+ %d+ %d+ %d %d+ (%d+):') or ''
    local score = redis.call('ZSCORE', base .. 'u:' .. user, name)
    if tonumber(score or 0) ~= expiry then
      wrong[#wrong + 1] = key .. ' lives, and the index does not say so'
    end
  elseif kind == 'u' then
    local entries = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for i = 1, #entries, 2 do
      local score = tonumber(entries[i + 1])
      if score > now and redis.call('EXISTS', base .. 'h:' .. entries[i]) == 0 then
        wrong[#wrong + 1] = key .. ' has an entry without a session'
      end
      if score > expiry then
        wrong[#wrong + 1] = key .. ' ends before an entry'
      end
    end
  end
end
return wrong
"""
"""What must hold at any moment, looked at in one moment."""


AGE = """
local text = redis.call('HGET', KEYS[1], '1')
redis.call('HSET', KEYS[1], '1', (string.gsub(text, '^%d+ %d+',
  ARGV[3] .. ' ' .. redis.call('TIME')[1] - ARGV[3])))
redis.call('PEXPIREAT', KEYS[1], ARGV[2] * 1000 + 499)
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
"""
"""Sets a session's beginning and end. EXPIRETIME is rounded to seconds: the key outlives the
session by half a second."""

Wrap = Callable[[Commands], Any]


def open_node(commands: Commands, kind: type[SessionStore] = SessionStore) -> SessionStore:
    # Without a touch interval every check writes.
    store = store_on(commands, kind, touch_seconds=0, max_per_user=PER_USER)
    store.commands = commands  # type: ignore[attr-defined]  # of a naive variant
    return store


class Nodes:
    """The stores of several nodes of the service, and a plain connection."""

    def __init__(self, server: RedisServer, kind: type[SessionStore], wrap: Wrap | None) -> None:
        self.random = random.Random(7)
        self.redis = connect(server.url, 5.0)
        self.stores = []
        for _ in range(NODES):
            commands = connect(server.url, 5.0)
            self.stores.append(open_node(wrap(commands) if wrap else commands, kind))

    def any(self) -> SessionStore:
        return self.random.choice(self.stores)

    async def race(self, *operations: Awaitable[Any]) -> list[Any]:
        """Run the operations at once, or one or two round trips apart, in any order."""

        async def begin(operation: Awaitable[Any], delay: int) -> Any:
            for _ in range(delay):
                await self.redis.execute("PING")
            return await operation

        delays = [self.random.choice((0, 0, 1, 2, 3)) for _ in operations]
        order = self.random.sample(range(len(operations)), len(operations))
        tasks = {at: asyncio.create_task(begin(operations[at], delays[at])) for at in order}
        return await asyncio.gather(*(tasks[at] for at in range(len(operations))))

    async def exists(self, *sesiones: Sesion) -> int:
        number: int = await self.redis.execute(
            "EXISTS", *(session_key(sesion.Token_Sesion) for sesion in sesiones)
        )
        return number

    async def observe(self) -> list[str]:
        return [key.decode() for key in await self.redis.execute("EVAL", OBSERVE, 0)]

    async def until(self, moment: float) -> None:
        """Wait for a moment of Redis's clock."""
        seconds, micros = map(int, await self.redis.execute("TIME"))
        await asyncio.sleep(moment - seconds - micros / 1e6)

    async def reset(self) -> None:
        """The server as it was at first."""
        for setting in ("maxmemory", "min-replicas-to-write"):
            await self.redis.execute("CONFIG", "SET", setting, 0)
        await self.redis.execute("FLUSHALL")

    async def aclose(self) -> None:
        for store in self.stores:
            await store.aclose()
        await self.redis.aclose()


@dataclass(frozen=True)
class Scenario:
    """What one user goes through on several nodes at once; ``play`` returns what went wrong."""

    play: Callable[[Nodes, int], Awaitable[list[str]]]
    wrap: Wrap | None = None
    at_once: int = AT_ONCE
    """Users that are served at the same time."""
    observed: bool = True
    """Whether what lies in Redis must be right at any moment."""
    one_in: int = 1
    """One of so many users goes through it: where it is long."""


async def run(
    server: RedisServer,
    scenario: Scenario,
    variant: Any = SessionStore,
    until: str = "",
) -> list[str]:
    """What went wrong, up to the batch of users in which something did that contains ``until``.
    ``variant``: of the store, or of its commands."""
    kind, wrap = (variant, None) if issubclass(variant, SessionStore) else (SessionStore, variant)
    nodes = Nodes(server, kind, wrap or scenario.wrap)
    observer = Nodes(server, SessionStore, None)
    wrong: list[str] = []

    async def observe() -> None:
        while scenario.observed:
            began = time.monotonic()
            wrong.extend(await observer.observe())
            await asyncio.sleep(time.monotonic() - began)  # half the server is for the others

    try:
        rounds = max(1, (ROUNDS_UNTIL if until else ROUNDS) // scenario.one_in)
        for first in range(0, rounds, scenario.at_once):
            await nodes.reset()
            watching = asyncio.create_task(observe())
            users = range(first, min(first + scenario.at_once, rounds))
            for found in await asyncio.gather(*(scenario.play(nodes, user) for user in users)):
                wrong += found
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            if scenario.observed:
                wrong += await nodes.observe()
            if any(until in what for what in wrong):
                break
    finally:
        await nodes.reset()
        await nodes.aclose()
        await observer.aclose()
    return wrong
