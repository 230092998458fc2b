"""The costs that scripts/costs.py measures, on small numbers."""

import pytest

from scripts import costs
from scripts.capacity import COEFFICIENTS, COSTS, CheckCosts

pytestmark = [pytest.mark.slow, pytest.mark.redis]


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "OPERATIONS", "WRITES", "MESSAGES":
        monkeypatch.setattr(costs, name, 10 * costs.AT_ONCE)
    monkeypatch.setattr(costs, "USERS", 2)
    monkeypatch.setattr(costs, "SESSIONS_OF_A_USER", 200)
    monkeypatch.setattr(costs, "ENTRIES_MAX", 1024)
    monkeypatch.setattr("sesiones.store.near_cache.ENTRIES_MAX", 1024)


def test_every_cost_is_measured() -> None:
    figures = {
        name: figure
        for part in (costs.of_entries, costs.of_service, costs.of_messages, costs.of_traces)
        for name, figure, _ in part()
    }
    of_checks = {*(name.upper() for name in CheckCosts._fields), "NODE_WAKE", "REDIS_WAKE"}
    measured = {name for name, one in COEFFICIENTS.items() if one.command == COSTS}
    assert figures.keys() > measured - of_checks
    assert len(figures.keys() - measured) == 7
    # CPU times come in steps of 10 ms, which a few hundred operations may not reach.
    assert 500 < figures["ENTRY_BYTES"] < 10_000
    assert 100 < figures["memory of a trace"] < 400
    assert figures["CALLER_BYTES"] > 400
    assert 50 < figures["CHECK_BYTES"] < figures["CALL_BYTES"] + 100
    assert figures["WORKER_BYTES"] > 10_000_000
