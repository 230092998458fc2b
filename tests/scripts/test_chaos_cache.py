"""The scenario cache can fail: each service here breaks a promise of the near-cache."""

import pytest

from scripts.chaos import Bar, cache

# Each of the rounds may take a quarter of a minute.
pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(300)]

A_LEASE_THAT_OUTLASTS_ITS_SUBSCRIPTION = """
from sesiones.redis_client import subscription
subscription.LEASE_SECONDS = 60.0
"""
MESSAGES_ARE_IGNORED = """
from sesiones.store.near_cache import NearCache
NearCache.message = lambda self, digests: None
"""
# With leases that last, because the other worker stops to answer when its lease runs out.
WORKERS_SHARE_NO_TABLE = f"""{A_LEASE_THAT_OUTLASTS_ITS_SUBSCRIPTION}
from sesiones.store.near_cache import InvalidationTable
really = InvalidationTable.__init__
InvalidationTable.__init__ = lambda self, descriptor=None: really(self)
"""
EXPIRIES_ARE_FORGOTTEN = """
from sesiones.store.near_cache import NearCache
really = NearCache.fill
def fill(self, read, sesiones, windows, redis_time):
    lasting = [each and each._replace(Fecha_Expiracion=2**40) for each in sesiones]
    really(self, read, lasting, [2**40] * len(windows), redis_time)
NearCache.fill = fill
"""
LATE, OWN = range(2)
"""The bars of the scenario."""
ROUNDS_MAX = 6
"""A flaw shows only where a check meets the moment that it is about, so one round may miss it."""


def play(flaw: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    monkeypatch.setattr(cache, "FLAW", flaw)
    monkeypatch.setattr(cache, "DEPLOYMENTS", {kind: cache.DEPLOYMENTS[kind]})
    monkeypatch.setattr(cache, "LEFT_OUT", {"Redis paused", "CLIENT PAUSE", "two nodes paused"})
    monkeypatch.setattr(cache, "SHORT_HOLD_SECONDS", 3.0)
    return list(cache.play(True))


@pytest.mark.parametrize(
    ("flaw", "bar"),
    [
        (A_LEASE_THAT_OUTLASTS_ITS_SUBSCRIPTION, LATE),
        (MESSAGES_ARE_IGNORED, LATE),
        (WORKERS_SHARE_NO_TABLE, OWN),
        (EXPIRIES_ARE_FORGOTTEN, OWN),
    ],
    ids=["lease", "messages", "table", "expiry"],
)
def test_cache_that_breaks_its_promise_misses_a_bar(
    flaw: str, bar: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = (play(flaw, "single server", monkeypatch)[bar] for _ in range(ROUNDS_MAX))
    assert not all(each.met for each in rounds)
