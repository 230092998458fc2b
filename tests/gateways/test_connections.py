"""How many connections the checks need. A test's docstring is its row in the table."""

import re
import time

import pytest

from scripts.gateways import Gateway, RunningGateway
from tests.gateways.client import load
from tests.gateways.stand import Backend, token

CLIENTS = 16


@pytest.mark.parametrize("live", [True, False], ids=["live", "unknown"])
def test_connections(gateway: Gateway, backend: Backend, live: bool) -> None:
    """16 clients, 1,000 checks, passed or refused: at most 32 connections to the service"""
    session = backend.new_session() if live else {"Token_Sesion": "ses_" + "A" * 45}
    with (
        Backend(backend.redis, backend.application, SESIONES_ACCESS_LOG="1") as logged,
        RunningGateway(gateway, logged.ports, backend.application.port) as running,
    ):
        with load(running.port, token(session), CLIENTS) as answers:
            while len(answers) < 1000:
                time.sleep(0.01)
        opened = [re.findall(r"127\.0\.0\.1:(\d+) - ", node.log) for node in logged.nodes]
    assert {status for status, _ in answers} == {200 if live else 401}
    assert sum(map(len, opened)) >= 1000
    assert sum(len(set(ports)) for ports in opened) <= 2 * CLIENTS
