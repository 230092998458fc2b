"""The model of scripts/capacity.py, and that docs/capacity.md has what it computes."""

import importlib.util
import itertools
import random
from collections import OrderedDict
from pathlib import Path

import pytest

from scripts import capacity

ROOT = Path(__file__).parents[2]
CELLS = [
    (checks, sessions, cached)
    for checks in capacity.CHECKS
    for sessions in capacity.SESSIONS
    for cached in (False, True)
]


def simulated(sessions: int, session_rate: float, entry_seconds: float, entries_max: int) -> float:
    """The hit ratio of independent checks, with entries that the oldest make room for."""
    choose = random.Random(7)
    entries: OrderedDict[int, float] = OrderedDict()
    now = hits = 0.0
    checks = 200_000
    for _ in range(checks):
        now += choose.expovariate(sessions * session_rate)
        session = choose.randrange(sessions)
        if entries.get(session, 0.0) > now:
            hits += 1
        else:
            entries.pop(session, None)
            entries[session] = now + entry_seconds
            if len(entries) > entries_max:
                entries.popitem(last=False)
    return hits / checks


@pytest.mark.parametrize("session_rate", [0.01, 0.1, 1.0])
def test_hit_ratio_is_that_of_a_simulation(session_rate: float) -> None:
    expected = simulated(200, session_rate, 5.0, 1000)
    assert capacity.hit_ratio(session_rate, 5.0) == pytest.approx(expected, abs=0.02)


def test_hit_ratio_of_a_full_cache_is_that_of_a_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "ENTRIES_MAX", 100)
    expected = simulated(400, 1.0, 60.0, 100)
    assert capacity.hit_ratio(1.0, 60.0, 400) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("checks", "sessions", "cached"), CELLS)
def test_plan_leaves_room_on_every_core_and_in_memory(
    checks: float, sessions: float, cached: bool
) -> None:
    row = capacity.row(checks, sessions, cached=cached)
    each, load = row.each, capacity.load_of(checks / row.deployments, sessions / row.deployments)
    assert each.master_utilisation <= capacity.UTILISATION
    assert max(each.fan_out) <= capacity.FAN_OUT_MAX
    memory = each.masters * capacity.MASTER_BYTES_MAX
    assert load.sessions * capacity.SESSION_BYTES.value <= memory
    checks_us = load.checks * capacity.NODE_HIT.value
    assert each.workers * capacity.UTILISATION * 1e6 >= checks_us


def test_one_master_carries_what_its_check_costs_allow() -> None:
    checks = int(capacity.UTILISATION * 1e6 / capacity.REDIS_CHECK.value * 0.99)
    load = capacity.Load(checks, active=1, sessions=1, logins=0, logouts=0)
    assert capacity.plan(load, cached=False).masters == 1
    assert capacity.plan(load._replace(checks=1.1 * checks), cached=False).masters == 2


def test_near_cache_relieves_masters_of_few_hot_sessions() -> None:
    load = capacity.Load(1_000_000, active=1000, sessions=1000, logins=1, logouts=1)
    without, cached = (capacity.plan(load, cached=cached) for cached in (False, True))
    assert cached.hits > 0.95
    assert cached.masters < without.masters
    assert cached.workers < without.workers


def test_users_are_divided_when_messages_take_too_much() -> None:
    few, many = (capacity.row(1e6, sessions, cached=True) for sessions in (1e6, 1e10))
    assert few.deployments == 1
    assert many.deployments > capacity.row(1e6, 1e10, cached=False).deployments


def test_every_coefficient_names_a_command_of_this_repository() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for coefficient in capacity.COEFFICIENTS:
        words = coefficient.command.split()
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile
        else:
            assert words[:2] == ["python", "-m"]
            assert importlib.util.find_spec(words[2])


def test_document_has_the_tables_that_the_script_computes() -> None:
    text = (ROOT / "docs" / "capacity.md").read_text("utf-8")
    tables = (capacity.table(cached=cached) for cached in (False, True))
    for table in itertools.chain([capacity.coefficients()], tables):
        assert table in text
