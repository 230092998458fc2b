"""When something fails. A test's docstring is its row in the table."""

import signal
import time
from contextlib import ExitStack
from operator import gt
from typing import Any

import pytest

from tests.gateways.client import load
from tests.gateways.stand import OUTAGE_SECONDS, Stand, recovers, token, unavailable
from tests.harness.service import comes_true

BACK_IN_USE_SECONDS = 10.0
SETTLE_SECONDS = 2.5
"""Up to 2 s after a node is back in use, Envoy may leave it out once more for a second."""


def test_service_down(stand: Stand, session: dict[str, Any]) -> None:
    """503 with `Retry-After` while both nodes are down, and then it recovers"""
    with stand.backend.without(0, 1):
        for _ in range(5):
            for headers in (token(session), []):
                unavailable(stand, time.monotonic(), stand.ask(headers))
    recovers(stand, session)


def test_service_hung(stand: Stand, session: dict[str, Any]) -> None:
    """503 with `Retry-After` while both nodes hang, and then it recovers"""
    with stand.backend.hung(0, 1):
        unavailable(stand, time.monotonic(), stand.ask(token(session)))
    recovers(stand, session)


def test_redis_down(stand: Stand, session: dict[str, Any]) -> None:
    """503 with `Retry-After` while Redis is down, and then it recovers"""
    with stand.backend.without_redis():
        for _ in range(3):
            unavailable(stand, time.monotonic(), stand.ask(token(session)))
    recovers(stand, session)


def test_redis_hung(stand: Stand, session: dict[str, Any]) -> None:
    """503 with `Retry-After` while Redis hangs, and then it recovers"""
    process = stand.backend.redis.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(3):
            unavailable(stand, time.monotonic(), stand.ask(token(session)))
    finally:
        process.send_signal(signal.SIGCONT)
    recovers(stand, session)


def both_are_asked(stand: Stand) -> None:
    """Waits until both nodes answer checks, which the gateway makes at the time."""
    before = stand.backend.checks()
    assert comes_true(lambda: all(map(gt, stand.backend.checks(), before)), BACK_IN_USE_SECONDS), (
        stand.running.log
    )


@pytest.mark.parametrize("number", [0, 1])
def test_node_killed(stand: Stand, session: dict[str, Any], number: int) -> None:
    """one of two nodes killed under load, and started again: no request fails"""
    time.sleep(SETTLE_SECONDS)
    with load(stand.port, token(session), clients=4) as answers:
        both_are_asked(stand)
        answers.clear()  # the outages of the tests before are over
        with stand.backend.without(number):
            time.sleep(0.7)
        both_are_asked(stand)
    assert len(answers) > 100
    assert {status for status, _ in answers} == {200}


def test_node_hung(stand: Stand, session: dict[str, Any]) -> None:
    """one of two nodes hangs under load: no request fails"""
    time.sleep(SETTLE_SECONDS)
    # The load ends first: a node that goes on after a stop takes its Redis for silent, for once.
    with ExitStack() as hanging, load(stand.port, token(session), clients=4) as answers:
        both_are_asked(stand)
        answers.clear()
        hanging.enter_context(stand.backend.hung(0))
        time.sleep(2.5)
    assert {status for status, _ in answers} == {200}
    assert max(seconds for _, seconds in answers) < OUTAGE_SECONDS
    recovers(stand, session)
