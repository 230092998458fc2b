"""What holds of a service while Redis is out, and when it is back."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.harness.deployment import Deployment
from tests.harness.service import Reply

TIMEOUT_SECONDS = 0.25
CHECK_SECONDS = 2 * TIMEOUT_SECONDS + 0.2  # what a busy machine may add
RECOVERY_SECONDS = 1.0


def in_time(ask: Callable[[], Reply], seconds: float = CHECK_SECONDS) -> Reply:
    begun = time.monotonic()
    reply = ask()
    assert time.monotonic() - begun < seconds
    return reply


def assert_unavailable(reply: Reply) -> None:
    assert reply.status == 503
    assert reply.headers["retry-after"] == "1"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["content-type"] == "application/problem+json"


def assert_out(deployment: Deployment, session: dict[str, Any]) -> None:
    """Only what needs no Redis works, each answer is in time, and the log stays short."""
    token = session["Token_Sesion"]
    lines = len(deployment.service.log.splitlines())
    asked: list[Callable[[], Reply]] = [
        lambda: deployment.check(token),
        lambda: deployment.check(token, "/sesiones/verificar/ruta"),
        deployment.create,
        lambda: deployment.put(session),
        lambda: deployment.end(token, token),
        lambda: deployment.end(token, token, "logoutAll"),
    ]
    for ask in asked:
        assert_unavailable(in_time(ask))
    for malformed in "", "ses_", token[:-1], "ses_" + "ñ" * 45:
        reply = in_time(partial(deployment.check, malformed), 0.2)
        assert reply.status == 401
    new = deployment.service.log.splitlines()[lines:]
    assert len(new) <= 3, new
    assert "Redis is unavailable" in deployment.service.log


def assert_recovers(deployment: Deployment, session: dict[str, Any]) -> None:
    """A check works within the promised second, then everything does."""
    token = session["Token_Sesion"]
    begun = time.monotonic()
    while (reply := deployment.check(token)).status != 200:
        assert_unavailable(reply)
        assert time.monotonic() - begun < RECOVERY_SECONDS
        time.sleep(0.02)
    assert reply.json()["ID_Sesion"] == session["ID_Sesion"]
    assert deployment.put(reply.json()).status == 200
    other = deployment.new_session()
    assert deployment.end(token, other["Token_Sesion"]).json() == {"Sesiones_Eliminadas": 1}
    assert deployment.check(other["Token_Sesion"]).status == 401
