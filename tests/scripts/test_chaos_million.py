"""The scenario of the million fails where it should."""

import hashlib

import pytest

from scripts import seed
from scripts.chaos import million
from sesiones.store import scripts

pytestmark = pytest.mark.slow

LOOP = "for _, digest in ipairs(digests) do\n"


def break_end_all(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Before the first loop of end_all.lua."""
    end_all = scripts.Script("end_all")
    assert LOOP in end_all.source
    end_all.source = end_all.source.replace(LOOP, text + LOOP, 1)
    end_all.sha = hashlib.sha1(end_all.source.encode()).hexdigest()
    monkeypatch.setattr(scripts, "END_ALL", end_all)
    monkeypatch.setattr(scripts, "SERVICE_SCRIPTS", (*scripts.SERVICE_SCRIPTS, end_all))


def met() -> list[bool]:
    return [bar.met for bar in million.play(True)]


def test_a_logout_all_that_scans_all_keys_and_large_sessions_miss_their_bars(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And sessions that take more than they should."""
    monkeypatch.setattr(seed, "DEVICE", "d" * 512)
    break_end_all(monkeypatch, "redis.call('KEYS', '*')\n")
    assert met()[:2] == [False, False]


def test_a_quadratic_logout_all_misses_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    again = "for _, other in ipairs(digests) do redis.call('EXISTS', base .. other) end"
    break_end_all(monkeypatch, f"for _ in ipairs(digests) do for _ = 1, 20 do {again} end end\n")
    assert met()[2] is False
