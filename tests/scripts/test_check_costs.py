"""The costs of checks that scripts/check_costs.py measures and predicts."""

import os
import shutil
from collections.abc import Callable

import pytest

from scripts import check_costs
from scripts.capacity import CheckCosts, batch_size, busy
from scripts.check_costs import Loads, Measured, parts_of, round_trip_of

COSTS = CheckCosts(6.0, 12.0, 5.0, 80.0, 3.0, 40.0)
WAKE_US = 25.0


def load(
    nodes: int, rate: float, hits: float, batch: float, *, cached: bool, sleep: bool
) -> Measured:
    """What the model says of a load of nodes that share a core."""
    calls = (1 - hits) / batch
    node_rate = rate / nodes / 1e6
    work = node_rate * COSTS.of_node(hits, batch, cached=cached)
    waking = node_rate * (1 + calls) * WAKE_US if sleep else 0.0
    share = 0.0
    for _ in range(50):
        share = busy(work, waking, (nodes - 1) * share)
    return Measured(rate, hits, calls, share / node_rate, COSTS.of_redis(hits, batch))


@pytest.mark.parametrize("nodes", [1, 2])
def test_parts_are_those_that_the_loads_were_made_of(nodes: int) -> None:
    costs, wake_us = parts_of(
        Loads(
            nodes,
            moderate=load(nodes, 4000, 0, 1.3, cached=False, sleep=True),
            limit=load(nodes, 50_000, 0, 35, cached=False, sleep=False),
            hits_moderate=load(nodes, 4000, 1, 1, cached=True, sleep=True),
            hits_limit=load(nodes, 150_000, 1, 1, cached=True, sleep=False),
            mixed_limit=load(nodes, 40_000, 0.4, 20, cached=True, sleep=False),
        )
    )
    assert costs == pytest.approx(COSTS)
    assert wake_us == pytest.approx(WAKE_US)


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
    assert list(figures) == [*(name.upper() for name in CheckCosts._fields), "NODE_WAKE"]
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
