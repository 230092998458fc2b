"""The promise of the near-cache, on a simulated Cluster (cache_world.py) where every message takes
its own time and anything can fail; and that the simulation finds each way to break it."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from sesiones.redis_client import subscription
from sesiones.redis_client.cluster import Cluster
from sesiones.redis_client.subscription import LEASE_SECONDS, NO_LEASE, Lease, Subscription
from sesiones.store.events import SessionEvents
from sesiones.store.near_cache import Entry, NearCache, Read
from tests.store import cache_play
from tests.store.cache_world import Violation, World

ROUNDS = max(1, int(float(os.environ.get("SESIONES_TEST_ROUNDS", "1"))))
SEEDS_MAX = 40
"""Within so many runs the simulation must find what breaks the promise."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of outages are simulated."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_answer_from_memory_is_never_older_than_a_second() -> None:
    assert cache_play.run(0) > 500


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_answer_from_memory_is_never_older_than_a_second_in_many_runs() -> None:
    _play(100 * ROUNDS)


Patch = Callable[[pytest.MonkeyPatch], None]


def fill_from_any_read(patch: pytest.MonkeyPatch) -> None:
    """The stamps are looked at when the read is answered, not before it is sent."""
    really = NearCache.fill

    def fill(self: NearCache, read: Read, *rest: Any) -> None:
        stamps = [self.stamps[index] for index in read.indexes]
        really(self, read._replace(stamps=stamps), *rest)

    patch.setattr(NearCache, "fill", fill)


def count_from_the_answer(patch: pytest.MonkeyPatch) -> None:
    """A lease is counted from when the ping was answered."""
    really = Subscription.extend

    async def extend(self: Subscription) -> None:
        await really(self)
        self.lease.extend(asyncio.get_running_loop().time() + LEASE_SECONDS)

    patch.setattr(Subscription, "extend", extend)


def keep_across_reconnects(patch: pytest.MonkeyPatch) -> None:
    """An entry counts while there is any lease on its bucket."""

    def counts(self: NearCache, entry: Entry, now: float) -> bool:
        entry.lease = self._lease_of(entry.sesion.Token_Sesion[4:6])
        return really(self, entry, now)

    really = NearCache.counts
    patch.setattr(NearCache, "counts", counts)


def share_a_lease(patch: pytest.MonkeyPatch) -> None:
    """One lease serves both masters."""

    def lease(self: Cluster, _: str) -> Lease:
        leases = [server.lease("") for server in self._servers.values()]
        return max(leases, key=lambda lease: lease.until, default=NO_LEASE)

    patch.setattr(Cluster, "lease", lease)


def trust_a_lease_that_no_timer_ended(patch: pytest.MonkeyPatch) -> None:
    """A process that was paused takes the time of its last timer for now."""
    ticked: dict[asyncio.AbstractEventLoop, float] = {}

    def tick(loop: asyncio.AbstractEventLoop) -> None:
        ticked[loop] = loop.time()
        loop.call_later(0.02, tick, loop)

    def counts(self: NearCache, entry: Entry, now: float) -> bool:
        loop = asyncio.get_running_loop()
        if loop not in ticked:
            tick(loop)
        return really(self, entry, ticked[loop])

    really = NearCache.counts
    patch.setattr(NearCache, "counts", counts)


def answer_when_a_slide_is_due(patch: pytest.MonkeyPatch) -> None:
    really = NearCache.__init__

    def init(self: NearCache, cache_seconds: int, touch_seconds: int, *rest: Any) -> None:
        really(self, cache_seconds, touch_seconds + 1, *rest)

    patch.setattr(NearCache, "__init__", init)


def expire_a_second_late(patch: pytest.MonkeyPatch) -> None:
    """Neither a slide nor the expiry is due before its second is over."""
    really = NearCache.fill

    def fill(self: NearCache, read: Read, sesiones: Any, windows: Any, redis_time: float) -> None:
        really(self, read, sesiones, windows, redis_time - 1)

    patch.setattr(NearCache, "fill", fill)


def ignore_the_role(patch: pytest.MonkeyPatch) -> None:
    """A master that was made a replica keeps its lease."""
    patch.setattr(subscription, "_check_master", lambda _: None)


def ignore_messages(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NearCache, "message", lambda *_: None)


def tell_no_worker(patch: pytest.MonkeyPatch) -> None:
    """A node that has ended a session waits for the message, like every other."""
    patch.setattr(SessionEvents, "ended", lambda *_: None)


@pytest.mark.parametrize(
    "mutate",
    [
        fill_from_any_read,
        trust_a_lease_that_no_timer_ended,
        answer_when_a_slide_is_due,
        expire_a_second_late,
        ignore_messages,
        tell_no_worker,
    ],
)
def test_simulation_finds_a_cache_that_breaks_the_promise(
    mutate: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with pytest.raises(Violation):
        _play(SEEDS_MAX)


FAULTS = {
    cache_play.answer_late_and_then_nothing: count_from_the_answer,
    cache_play.silence_one_master: share_a_lease,
    cache_play.demote_one_master: ignore_the_role,
    cache_play.lose_subscriptions: keep_across_reconnects,
}
"""Each fault of a simulation, and what would break the promise in it."""


@pytest.mark.parametrize("fault", FAULTS)
def test_answer_from_memory_is_never_older_than_a_second_when_one_fault_comes(
    fault: Callable[[World], float],
) -> None:
    assert cache_play.run(1, partial(cache_play.play_fault, fault=fault)) > 0


@pytest.mark.parametrize(("fault", "mutate"), FAULTS.items())
def test_one_fault_finds_the_cache_that_it_breaks(
    fault: Callable[[World], float], mutate: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with pytest.raises(Violation):
        _play(SEEDS_MAX, partial(cache_play.play_fault, fault=fault))


def _play(runs: int, *plays: Any) -> None:
    """``plays``: what run() plays in place of its own, if anything."""
    for seed in range(runs):
        cache_play.run(seed, *plays)
