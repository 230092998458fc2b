"""The scenario outages can fail: each of these services or answers breaks a promise."""

import sys

import pytest

from scripts.chaos import outages
from scripts.chaos.outages import NO_WRITES, OUT, Window, judge
from tests.harness.service import Service
from tests.harness.traffic import Event

pytestmark = pytest.mark.slow

WINDOW = Window(10.0, 10.1, 11.0, 11.1)
"""Of a fault, in seconds."""


def event(at: float, operation: str, status: int, seconds: float = 0.01) -> Event:
    return Event(at, operation, status, seconds, 0, "")


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        (event(10.5, "create", 201), NO_WRITES),  # a false success
        (event(10.5, "logout", 200), NO_WRITES),
        (event(10.5, "check", 503), NO_WRITES),  # refused for no reason
        (event(10.5, "check", 401), NO_WRITES),
        (event(10.5, "check", 200), OUT),  # a replica authenticates
        (event(10.5, "check ended", 200), NO_WRITES),  # an ended session is let in
        (event(10.5, "update", 500), OUT),
        (event(10.5, "update", 0), OUT),
        (event(9.9, "check", 503), OUT),  # before it
        (event(12.2, "check", 503), OUT),  # long after it
    ],
)
def test_judge_names_an_answer_that_is_not_allowed(wrong: Event, allowed: outages.Allowed) -> None:
    found = judge([event(10.5, "create", 503), wrong], [WINDOW], allowed)
    assert found.wrong == {f"{wrong.operation} {wrong.status}": 1}
    assert found.words().startswith("WRONG: ")


def test_judge_measures_the_longest_answer_and_the_recovery() -> None:
    events = [
        event(9.0, "create", 201),
        event(10.05, "create", 201),  # while the fault comes, both will do
        event(10.06, "create", 503),
        event(10.5, "create", 503, 0.4),
        event(10.6, "check", 200),
        event(10.9, "create", 201, 0.15),  # answered when it was over
        event(11.3, "create", 503, 0.2),
        event(11.6, "create", 201),
    ]
    found = judge(events, [WINDOW], NO_WRITES)
    assert not found.wrong
    assert found.statuses == {"create": {503: 1}, "check": {200: 1}}
    assert found.longest == 0.4
    assert found.recovery == pytest.approx(0.4)


TWIN_OFF = "from sesiones.store import checks\nchecks.PEEK = checks.CHECK"
FALSE_SUCCESS = """
from sesiones.sesion import StoreUnavailable
really = store.SessionStore.end
async def end(self, *tokens):
    try:
        return await really(self, *tokens)
    except StoreUnavailable:
        return 1
store.SessionStore.end = end
"""


@pytest.mark.parametrize(
    ("flaw", "missed"),
    [
        ("", []),
        (TWIN_OFF, ["NOREPLICAS: checks as always, the rest 503"]),
        (FALSE_SUCCESS, ["NOREPLICAS: checks as always, the rest 503", "never a false success"]),
    ],
)
def test_a_flawed_service_misses_the_bar(
    flaw: str, missed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"from sesiones import store\n{flaw}\nfrom sesiones.__main__ import main\nmain()"
    monkeypatch.setattr(Service, "command", (sys.executable, "-c", program))
    monkeypatch.setattr(outages, "FAULTS", {"NOREPLICAS": outages.FAULTS["NOREPLICAS"]})
    assert [bar.promise for bar in outages.play(True) if not bar.met] == missed
