"""The costs of checks that scripts/check_costs.py measures and predicts."""

import os
import shutil
from collections.abc import Callable

import pytest

from scripts import check_costs
from scripts.capacity import CheckCosts, batch_size
from scripts.check_costs import Loads, Measured, busy_us, parts_of, round_trip_of

COSTS = CheckCosts(6.0, 12.0, 5.0, 80.0, 2.0, 11.0)
NODE_WAKE_US, REDIS_WAKE_US = 25.0, 30.0


def load(
    processes: int, rate: float, hits: float, batch: float, *, cached: bool, sleep: bool
) -> Measured:
    """What the model says of so many nodes and so many masters."""
    calls = (1 - hits) / batch
    node_us, redis_us = COSTS.of_node(hits, batch, cached=cached), COSTS.of_redis(hits, batch)
    if sleep:
        node_us = busy_us(rate, node_us, (1 + calls) * NODE_WAKE_US, processes)
        redis_us = busy_us(rate, redis_us, calls * REDIS_WAKE_US, processes)
    return Measured(rate, hits, calls, node_us, redis_us)


@pytest.mark.parametrize("processes", [1, 2])
def test_parts_are_those_that_the_loads_were_made_of(processes: int) -> None:
    loads = Loads(
        processes,
        moderate=load(processes, 4000, 0, 1.3, cached=False, sleep=True),
        limit=load(processes, 50_000, 0, 35, cached=False, sleep=False),
        hits_moderate=load(processes, 4000, 1, 1, cached=True, sleep=True),
        hits_limit=load(processes, 150_000, 1, 1, cached=True, sleep=False),
        mixed_limit=load(processes, 40_000, 0.4, 20, cached=True, sleep=False),
    )
    parts = parts_of(loads, COSTS.redis_check, COSTS.redis_call, processes)
    assert parts.checks == pytest.approx(COSTS)
    assert parts[1:] == pytest.approx((NODE_WAKE_US, REDIS_WAKE_US))


def test_processes_on_one_core_need_no_more_than_it_has() -> None:
    assert busy_us(12_000, 70, 60, 2) < 1e6 / 12_000
    assert busy_us(100, 70, 60, 2) == pytest.approx(130, rel=0.02)


@pytest.mark.parametrize("batch", [1.001, 1.5, 10.0])
def test_round_trip_is_the_one_that_makes_such_batches(batch: float) -> None:
    assert batch_size(2000, round_trip_of(2000, batch)) == pytest.approx(batch)


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"SESSIONS": 1000, "HOT_SESSIONS": 50, "ROUNDS": 1, "TRIES": 1, "MODERATE_RATE": 500}
    for name, value in few.items():
        monkeypatch.setattr(check_costs, name, value)
    monkeypatch.setattr(check_costs, "RATES", [500])


def measures_loads(test: Callable[..., None]) -> Callable[..., None]:
    for mark in (
        pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed"),
        pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two cores are needed"),
        pytest.mark.usefixtures("_few"),
        pytest.mark.slow,
    ):
        test = mark(test)
    return test


@measures_loads
@pytest.mark.redis
def test_every_cost_of_checks_is_measured() -> None:
    figures = {name: figure for name, figure, _ in check_costs.coefficients()}
    assert list(figures) == [
        *(name.upper() for name in CheckCosts._fields),
        "NODE_WAKE",
        "REDIS_WAKE",
    ]
    assert 0 < figures["NODE_HIT"] < 1000


@measures_loads
@pytest.mark.cluster
def test_prediction_is_compared_with_a_load() -> None:
    rows = {(load, what): rest for load, what, *rest in check_costs.predict()}
    predicted, measured, _ = rows["500 checks/s, near-cache", "hit ratio"]
    assert predicted > 0.7
    assert measured > 0.5
    assert [what for _, what in rows] == [
        *("nodes: CPU us a check", "Redis: CPU us a check"),
        *("hit ratio", "calls of Redis a check"),
        *("nodes: CPU us a check", "Redis: CPU us a check"),
    ]
