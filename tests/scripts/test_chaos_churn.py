"""The scenario of the churn fails where it should."""

import hashlib
import math
import random

import pytest

from scripts.chaos import churn
from scripts.chaos.watch import rise
from sesiones.store import scripts
from sesiones.store.events import SessionEvents

pytestmark = pytest.mark.slow


def test_each_flaw_of_a_service_misses_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """By sessions that never expire, numbers that repeat and ends that are not counted."""
    create = scripts.Script("create")
    for text, other in (
        ("redis.call('EXPIREAT', key,", "redis.call('EXISTS', key,"),
        ("id = int(n * 4096", "id = int((n - n % 65536) * 4096"),
    ):
        assert text in create.source
        create.source = create.source.replace(text, other)
    create.sha = hashlib.sha1(create.source.encode()).hexdigest()
    monkeypatch.setattr(scripts, "CREATE", create)
    monkeypatch.setattr(SessionEvents, "ended", lambda *_: None)
    monkeypatch.setattr(churn, "GONE_SECONDS", 0)
    bars = {bar.promise: bar.measured for bar in churn.play(True) if not bar.met}
    assert len(bars) == 5
    for found in "a live session was refused", "the key has no expiry":
        assert any(found in measured for measured in bars.values())


def test_rise_is_that_of_the_trend_and_not_of_the_noise() -> None:
    noise = random.Random(7)
    moments = [second / 2 for second in range(600)]
    flat = [(moment, 2e6 + noise.gauss(0, 2e4) + 2e4 * math.sin(moment)) for moment in moments]
    assert abs(rise(flat)) < 0.005
    leaking = [(moment, bytes_ + 150 * moment) for moment, bytes_ in flat]
    assert rise(leaking) == pytest.approx(300 * 150 / 2e6, abs=0.005)
