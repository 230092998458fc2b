"""The model of scripts/capacity.py, and that docs/capacity.md has what it computes."""

import asyncio
import importlib.util
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import capacity
from sesiones.redis_client.single import Server
from sesiones.store.batching import Answered, Batcher
from tests.harness.virtual_loop import CLOCK
from tests.harness.virtual_loop import run as virtual_run

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


async def batch_size_of_batcher(rate: float, round_trip: Callable[[], float]) -> float:
    """The checks in a call, of a Batcher that is asked at random."""
    choose = random.Random(7)
    sizes: list[int] = []

    def ask(questions: list[int], _: float, answered: Answered[int]) -> None:
        sizes.append(len(questions))
        loop.call_later(round_trip(), answered, questions)

    loop = asyncio.get_running_loop()
    batcher = Batcher(
        ask,
        60.0,
        batch_max=Server.batch_max,
        in_flight_max=Server.in_flight_max,
        overdue=TimeoutError,
        observe=lambda *_: None,
    )
    checks = 6000
    for number in range(checks):
        batcher.submit(number, lambda _: None)
        await asyncio.sleep(choose.expovariate(rate))
    await batcher.aclose(TimeoutError())
    return checks / len(sizes)


@pytest.mark.parametrize("calls_at_once", [0.3, 1.0, 2.0, 4.0, 12.0, 60.0])
@pytest.mark.parametrize("equal", [True, False])
def test_batch_size_is_that_of_the_batcher(
    calls_at_once: float, equal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sesiones.store.batching.time", CLOCK)
    choose, seconds = random.Random(11), capacity.ROUND_TRIP_SECONDS
    rate = calls_at_once / seconds
    expected = virtual_run(
        lambda: batch_size_of_batcher(
            rate, lambda: seconds if equal else choose.expovariate(1 / seconds)
        )
    )
    assert capacity.batch_size(rate) == pytest.approx(expected, rel=0.1)


def test_batch_size_is_bounded_by_that_of_a_call() -> None:
    assert capacity.batch_size(1e9) == Server.batch_max
    assert capacity.batch_size(0) == 1


@pytest.mark.parametrize(("work", "waking"), [(0.05, 0.2), (0.3, 0.3), (0.6, 0.1), (0.9, 0.5)])
def test_busy_share_is_that_of_a_simulated_loop(work: float, waking: float) -> None:
    """Events come at random, one a second on average; only one that finds it asleep wakes it."""
    choose = random.Random(7)
    now = free_at = spent = 0.0
    events = 100_000
    for _ in range(events):
        now += choose.expovariate(1.0)
        took = work + (waking if free_at <= now else 0.0)
        free_at = max(free_at, now) + took
        spent += took
    assert capacity.busy(work, waking) == pytest.approx(spent / events, rel=0.03)


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
    checks_us = load.checks * capacity.CHECK_COSTS.of_node(each.hits, each.batch, cached=cached)
    assert each.workers * capacity.UTILISATION * 1e6 >= checks_us


def test_masters_are_as_many_as_the_checks_and_their_calls_need() -> None:
    load = capacity.Load(10_000, active=1, sessions=1, logins=0, logouts=0)
    for checks in 10_000, 30_000, 100_000, 300_000:
        plan = capacity.plan(load._replace(checks=checks), cached=False)
        batch = capacity.batch_size(checks / plan.workers / plan.masters)
        share = checks * capacity.CHECK_COSTS.of_redis(0, batch) / plan.masters / 1e6
        assert plan.batch == batch
        assert plan.master_utilisation == pytest.approx(share, abs=0.001)
        assert plan.cold[0] == pytest.approx(share)


def test_batches_are_smaller_the_more_masters_share_the_checks() -> None:
    load = capacity.Load(20_000, active=1, sessions=1, logins=0, logouts=0)
    small = capacity.plan(load, cached=False)
    sessions = 20 * capacity.MASTER_BYTES_MAX / capacity.SESSION_BYTES.value
    large = capacity.plan(load._replace(sessions=sessions), cached=False)
    assert (small.masters, large.masters) == (1, 20)
    assert large.batch < small.batch
    assert large.workers > small.workers


def test_dividing_the_users_makes_batches_large_and_saves_processes() -> None:
    checks, sessions = 10e6, 1e6
    row = capacity.row(checks, sessions, cached=False)
    whole = capacity.plan(capacity.load_of(checks, sessions), cached=False)
    assert row.deployments > 1
    assert row.each.batch > 2 * whole.batch
    assert row.processes < (whole.workers + whole.masters) / (1 + capacity.DIVIDING_SAVES)


def test_near_cache_relieves_masters_of_few_hot_sessions() -> None:
    load = capacity.Load(1_000_000, active=1000, sessions=1000, logins=1, logouts=1)
    without, cached = (capacity.plan(load, cached=cached) for cached in (False, True))
    assert cached.hits > 0.95
    assert cached.masters < without.masters
    assert cached.workers < without.workers


def test_worker_whose_checks_are_hits_needs_more_than_its_core_once_every_entry_is_lost() -> None:
    load = capacity.Load(1_000_000, active=1000, sessions=1000, logins=0, logouts=0)
    plan = capacity.plan(load, cached=True)
    rate = load.checks / plan.workers
    batch = capacity.batch_size(rate / plan.masters)
    costs = capacity.CHECK_COSTS
    misses = costs.node_check + costs.node_entry + costs.node_call / batch
    assert plan.cold[1] == pytest.approx(rate * misses / 1e6)
    assert plan.cold[1] > 1
    assert capacity.plan(load, cached=False).cold[1] <= capacity.UTILISATION


def test_users_are_divided_when_messages_take_too_much() -> None:
    few, many = (capacity.row(1e4, sessions, cached=True) for sessions in (1e6, 1e10))
    assert few.deployments == 1
    assert many.deployments > capacity.row(1e4, 1e10, cached=False).deployments


def test_every_coefficient_names_a_command_of_this_repository() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for coefficient in capacity.COEFFICIENTS.values():
        words = coefficient.command.split()
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile
        else:
            assert words[:2] == ["python", "-m"]
            assert importlib.util.find_spec(words[2])


def test_loop_that_waits_for_its_core_sleeps_less() -> None:
    assert capacity.busy(0.2, 0.3, 0.5) < capacity.busy(0.2, 0.3)
    assert capacity.busy(0.2, 0.0, 0.5) == 0.2


@pytest.mark.parametrize("name", capacity.COEFFICIENTS)
def test_source_line_is_the_line_of_the_module(name: str) -> None:
    source = Path(capacity.__file__).read_text().splitlines()
    assert capacity.source_line(name, capacity.COEFFICIENTS[name].value) in source


def test_document_has_the_tables_that_the_script_computes() -> None:
    text = (ROOT / "docs" / "capacity.md").read_text("utf-8")
    tables = (capacity.table(cached=cached) for cached in (False, True))
    for table in [capacity.coefficients(), capacity.operations(), *tables]:
        assert table in text
