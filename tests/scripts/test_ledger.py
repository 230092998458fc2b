"""tests/harness/ledger.py: what contradicts what a client knows, and what does not."""

import pytest

from tests.harness.ledger import CLOCK_SECONDS, Ledger, numbers

NOW = 1_800_000_000
SESSION = {
    "ID_Sesion": 4097,
    "ID_Usuario": 7,
    "Fecha_Inicio": NOW,
    "Ultima_Actividad": NOW,
    "Fecha_Expiracion": NOW + 1800,
}


class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    ledger = Ledger(clock)
    ledger.add("a", SESSION)
    ledger.add("b", SESSION | {"ID_Sesion": 8193})
    return ledger


def test_200_for_a_live_session_is_right(ledger: Ledger) -> None:
    later = SESSION | {"Ultima_Actividad": NOW + 9, "Fecha_Expiracion": NOW + 1809}
    for answer in SESSION, later, later, {"ID_Usuario": 7}:
        assert ledger.judge(ledger.sent("a"), 200, answer) is None


def test_401_for_a_live_session_is_wrong(ledger: Ledger) -> None:
    assert ledger.judge(ledger.sent("a"), 401, {}) == "401 for a live session"
    for status in 503, 500, 0:
        assert ledger.judge(ledger.sent("a"), status, {}) is None


def test_401_is_right_near_and_after_the_expiry(ledger: Ledger, clock: Clock) -> None:
    sent = ledger.sent("a")
    clock.now = NOW + 1800 - CLOCK_SECONDS
    assert ledger.judge(sent, 401, {}) == "401 for a live session"
    clock.now += 1
    assert ledger.judge(sent, 401, {}) is None
    ledger.judge(ledger.sent("a"), 200, SESSION | {"Fecha_Expiracion": NOW + 3600})
    assert ledger.judge(ledger.sent("a"), 401, {}) == "401 for a live session"


def test_200_for_an_expired_session_is_wrong(ledger: Ledger, clock: Clock) -> None:
    before = ledger.sent("a")
    clock.now = NOW + 1800 + CLOCK_SECONDS
    assert ledger.judge(ledger.sent("a"), 200, SESSION) is None
    clock.now += 1
    after = ledger.sent("a")
    assert ledger.judge(after, 200, SESSION) == "200 after its own Fecha_Expiracion"
    assert ledger.judge(before, 200, SESSION) is None
    assert ledger.judge(after, 200, SESSION | {"Fecha_Expiracion": NOW + 3600}) is None


def test_200_after_an_acknowledged_logout_is_wrong(ledger: Ledger) -> None:
    logout = ledger.sent("a", ends=["a"])
    assert ledger.judge(logout, 200, {}) is None
    after = ledger.sent("a")
    assert ledger.judge(after, 401, {}) is None
    assert ledger.judge(after, 200, SESSION) == "200 after an acknowledged logout"
    assert ledger.judge(ledger.sent("b"), 200, SESSION | {"ID_Sesion": 8193}) is None


def test_check_in_flight_beside_a_logout_may_have_either_answer(ledger: Ledger) -> None:
    before = ledger.sent("a")
    logout = ledger.sent("b", ends=["a", "b"])
    during = ledger.sent("a")
    assert ledger.judge(before, 401, {}) is None
    assert ledger.judge(logout, 200, {}) is None
    for sent in before, during:
        assert ledger.judge(sent, 200, SESSION) is None
        assert ledger.judge(sent, 401, {}) is None
    assert ledger.judge(ledger.sent("a"), 200, SESSION) is not None


def test_after_an_unacknowledged_logout_either_answer_is_right(ledger: Ledger) -> None:
    assert ledger.judge(ledger.sent("a", ends=["a"]), 503, {}) is None
    assert ledger.judge(ledger.sent("a"), 200, SESSION) is None
    assert ledger.judge(ledger.sent("a"), 401, {}) is None
    assert ledger.judge(ledger.sent("a", ends=["a"]), 401, {}) is None


def test_401_for_a_first_logout_is_wrong(ledger: Ledger) -> None:
    for ends in ["a"], ["b"], ["a", "b"]:
        fresh = Ledger(Clock())
        fresh.add("a", SESSION)
        fresh.add("b", SESSION)
        assert fresh.judge(fresh.sent("a", ends), 401, {}) == "401 for a live session"


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"ID_Usuario": 8}, "another user's ID_Usuario"),
        ({"ID_Sesion": 1}, "another session's ID_Sesion"),
        ({"Fecha_Inicio": NOW + 1}, "another session's Fecha_Inicio"),
        ({"Ultima_Actividad": NOW - 1}, "Ultima_Actividad ran backwards"),
        ({"Fecha_Expiracion": NOW + 1799}, "Fecha_Expiracion ran backwards"),
    ],
)
def test_answer_that_contradicts_an_earlier_one_is_named(
    ledger: Ledger, changed: dict[str, int], wrong: str
) -> None:
    assert ledger.judge(ledger.sent("a"), 200, SESSION | changed) == wrong
    assert ledger.judge(ledger.sent("a"), 200, SESSION) is None
    assert ledger.judge(ledger.sent("a"), 200, {}) == "200 without ID_Usuario"


def test_dates_of_requests_that_overlap_may_come_in_any_order(ledger: Ledger) -> None:
    first, second = ledger.sent("a"), ledger.sent("a")
    later = SESSION | {"Ultima_Actividad": NOW + 1, "Fecha_Expiracion": NOW + 1801}
    assert ledger.judge(second, 200, later) is None
    assert ledger.judge(first, 200, SESSION) is None
    assert ledger.judge(ledger.sent("a"), 200, SESSION) is not None


def test_session_of_which_only_the_token_is_known(ledger: Ledger) -> None:
    ledger.add("seeded", {"ID_Usuario": 7})
    assert ledger.judge(ledger.sent("seeded"), 401, {}) == "401 for a seeded session: seed again?"
    assert ledger.judge(ledger.sent("seeded"), 200, SESSION | {"ID_Usuario": 8}) is not None
    assert ledger.judge(ledger.sent("seeded"), 200, SESSION) is None
    assert ledger.judge(ledger.sent("seeded"), 401, {}) == "401 for a live session"
    assert ledger.judge(ledger.sent("seeded"), 200, SESSION | {"ID_Sesion": 2}) is not None


def test_numbers_are_read_from_the_headers_or_the_body() -> None:
    headers = {"x-id-usuario": "7", "x-id-sesion": "4097", "x-fecha-expiracion": "1800001800"}
    of_headers = {"ID_Usuario": 7, "ID_Sesion": 4097, "Fecha_Expiracion": 1800001800}
    assert numbers(headers, b"") == of_headers
    assert numbers(headers, b'{"ID_Usuario":8,"Dispositivo":"x"}') == {"ID_Usuario": 8}
    for body in b"[]", b"{", b'{"ID_Usuario":"7"}', b'{"ID_Usuario":true}':
        with pytest.raises(ValueError, match=r"."):
            numbers(headers, body)
    with pytest.raises(ValueError, match=r"."):
        numbers({"x-id-usuario": "seven"}, b"")
