"""The scenarios of order and silence can fail: each answer or service here breaks a promise."""

import orjson
import pytest

from scripts.chaos import order, silence
from sesiones import tokens
from tests.harness.traffic import Reply

pytestmark = pytest.mark.slow

TOKEN = tokens.make(7)


def answer(status: int, user: int = 7, token: str = TOKEN, device: int = 7) -> Reply:
    session = {"ID_Usuario": user, "Token_Sesion": token, "Dispositivo": f"device of {device}"}
    headers = {"X-Id-Usuario": str(user)}
    return Reply(status, headers, orjson.dumps(session), False)


@pytest.mark.parametrize(
    ("operation", "wrong"),
    [
        ("check", answer(200, user=8)),
        ("check", answer(200, device=8)),
        ("check", answer(200, token=tokens.make(7))),
        ("create", answer(201, user=8)),
        ("create", answer(201, device=8)),
        ("update", answer(200, device=8)),
        ("verify", answer(200, user=8)),
        ("verify", Reply(200, {}, b"", False)),
    ],
)
def test_an_answer_of_another_user_is_found_out(operation: str, wrong: Reply) -> None:
    judge = order.Judge()
    token = None if operation == "create" else TOKEN
    judge.judge(operation, 7, answer(wrong.status), token)
    judge.judge(operation, 7, Reply(503, {}, b"", False), token)
    assert not judge.wrong
    judge.judge(operation, 7, wrong, token)
    assert judge.wrong.total() == 1


BY_THE_CLOCK_ALONE = """
import time
from sesiones.redis_client import cluster, single
really = tombstones.Tombstones.__init__
tombstones.Tombstones.__init__ = lambda self, _: really(self, lambda tag: time.monotonic())
single.Server.idle_ping = None
"""
FORGOTTEN_BEFORE_THE_REPLAY = """
from sesiones.redis_client import single
def lost(self, connection):
    self._open_connections.discard(connection)
    self._listener(single.BUCKETS)
single.Server._lost = lost
"""


@pytest.mark.parametrize("flaw", [BY_THE_CLOCK_ALONE, FORGOTTEN_BEFORE_THE_REPLAY])
def test_tombstones_that_expire_too_early_are_found_out(
    flaw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "FLAW", flaw)
    monkeypatch.setattr(
        silence, "DEPLOYMENTS", {"single server": silence.DEPLOYMENTS["single server"]}
    )
    monkeypatch.setattr(silence, "MAY_TAKE_SECONDS", 0.5)
    missed = [bar.promise for bar in silence.play(True) if not bar.met]
    assert any("never accepted" in promise or "paused" in promise for promise in missed)
