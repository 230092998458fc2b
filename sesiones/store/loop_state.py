"""The part of a store that belongs to one event loop."""

import asyncio
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

from sesiones import tokens
from sesiones.metrics import Metrics
from sesiones.policy import SessionPolicy
from sesiones.redis_client import Commands
from sesiones.store.checks import CheckQueue
from sesiones.store.events import SessionEvents
from sesiones.store.keys import Keys
from sesiones.store.near_cache import InvalidationTable, NearCache
from sesiones.store.operators import OperatorTools
from sesiones.store.replay import Replay
from sesiones.store.runner import Outages, ScriptRunner
from sesiones.store.timings import Timings
from sesiones.store.tombstones import Tombstones
from sesiones.store.writes import SessionWrites


@dataclass(frozen=True)
class Shared:
    """What the event loops of a store have in common. SessionStore says what the settings are."""

    connect: Callable[[], Commands]
    policy: SessionPolicy
    keys: Keys
    tombstones: Tombstones
    timings: Timings
    metrics: Metrics
    table: InvalidationTable | None
    _: KW_ONLY
    timeout_seconds: float
    wait_replicas: int
    cache_seconds: int
    why_seconds: int
    actor: str
    outages: Outages = field(default_factory=Outages)


@dataclass(frozen=True)
class LoopState:
    """One event loop's connections, and everything that waits for them."""

    runner: ScriptRunner
    events: SessionEvents
    cache: NearCache | None
    checks: CheckQueue
    writes: SessionWrites
    operators: OperatorTools
    replay: Replay

    def __post_init__(self) -> None:
        for commands in self.runner.ending_sessions:
            commands.on_owner_change(self.replay.owner_changed)

    def last_answered_sent_at(self, bucket: str) -> float:
        """The same as Commands.last_answered_sent_at(), of the connections that end sessions."""
        return min(
            commands.last_answered_sent_at(bucket) for commands in self.runner.ending_sessions
        )

    async def aclose(self) -> None:
        await self.replay.aclose()
        await self.runner.aclose()
        await self.checks.aclose()
        if self.cache is not None:
            self.cache.clear()
        await asyncio.sleep(0)  # until the transports that were aborted are closed
        self.events.flush()


def open_loop(shared: Shared) -> LoopState:
    """The part of the running event loop, without I/O."""
    keys, policy = shared.keys, shared.policy
    tombstones, metrics = shared.tombstones, shared.metrics
    commands = shared.connect()
    runner = ScriptRunner(
        commands,
        shared.connect() if shared.wait_replicas else commands,
        shared.connect(),
        wait_replicas=shared.wait_replicas,
        timeout_seconds=shared.timeout_seconds,
        why_seconds=shared.why_seconds,
        actor=shared.actor,
        outages=shared.outages,
        metrics=metrics,
    )
    cache = None
    if shared.table is not None and shared.cache_seconds:
        cache = NearCache(
            shared.cache_seconds, policy.touch_seconds, shared.table, commands.lease, metrics
        )
        commands.subscribe(keys.channel, cache.message, cache.lease_changed)
    events = SessionEvents(tombstones, metrics, cache)
    checks = CheckQueue(
        runner,
        keys,
        policy,
        tombstones,
        events,
        metrics,
        cache,
        timeout_seconds=shared.timeout_seconds,
        observe=shared.timings.checks_answered,
    )
    loop = LoopState(
        runner,
        events,
        cache,
        checks,
        SessionWrites(runner, keys, policy, tombstones, events, checks),
        OperatorTools(runner, keys, tombstones, events),
        Replay(runner, tombstones, events),
    )
    # This loop's master may lack recent deletions, and a loop that was closed by hand has not
    # queued its own. PerLoop still has the value of that loop, so that the store's
    # _last_answered_sent_at() counts it.
    loop.replay.owner_changed(tokens.BUCKETS)
    return loop
