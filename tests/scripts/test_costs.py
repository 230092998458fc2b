"""The costs that scripts/costs.py measures, on small numbers."""

import os
import shutil

import pytest

from scripts import costs

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
    assert len(figures) == 19
    # CPU times come in steps of 10 ms, which a few hundred operations may not reach.
    assert 500 < figures["memory of an entry"] < 10_000
    assert 100 < figures["memory of a trace"] < 400
    assert figures["a check: caller to node and back"] > 400
    assert figures["memory of a worker"] > 10_000_000


@pytest.mark.cluster
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two cores are needed")
def test_prediction_is_compared_with_a_load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SESSIONS": 50, "CONNECTIONS": 8, "SECONDS": 1, "ROUNDS": 1}.items():
        monkeypatch.setattr(costs, f"PREDICTED_{name}", value)
    costs.predict()
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.rpartition("  ")[0].split("  ")[0] for line in lines] == [
        "hit ratio",
        "nodes: CPU us a check",
        "Redis: CPU us a check",
    ]
    _, predicted, measured, _ = lines[0].rsplit(maxsplit=3)
    assert float(predicted) > 0.9
    assert float(measured) > 0.5
