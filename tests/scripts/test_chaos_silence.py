"""The scenario silence can fail: each service here breaks a promise."""

import pytest

from scripts.chaos import silence

pytestmark = pytest.mark.slow


BY_THE_CLOCK_ALONE = """
import time
from sesiones.redis_client import cluster, single
really = tombstones.Tombstones.__init__
tombstones.Tombstones.__init__ = lambda self, _: really(self, lambda bucket: time.monotonic())
single.Server.idle_ping = None
"""
FORGOTTEN_BEFORE_THE_REPLAY = """
from sesiones.redis_client import single
def lost(self, connection):
    self._open_connections.discard(connection)
    self._listener(single.BUCKETS)
single.Server._lost = lost
"""


@pytest.mark.parametrize("flaw", [BY_THE_CLOCK_ALONE, FORGOTTEN_BEFORE_THE_REPLAY])
def test_tombstones_that_expire_too_early_are_found_out(
    flaw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "FLAW", flaw)
    monkeypatch.setattr(
        silence, "DEPLOYMENTS", {"single server": silence.DEPLOYMENTS["single server"]}
    )
    monkeypatch.setattr(silence, "MAY_TAKE_SECONDS", 0.5)
    missed = [bar.promise for bar in silence.play(True) if not bar.met]
    assert any("never accepted" in promise or "paused" in promise for promise in missed)
