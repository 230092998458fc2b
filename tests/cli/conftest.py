"""The command line on a server of its own."""

from collections.abc import Iterator

import pytest
from redis import Redis

from sesiones.settings import variables
from tests.harness.command_line import CommandLine
from tests.harness.redis_server import RedisServer


@pytest.fixture(scope="package")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def own(server: RedisServer) -> Iterator["Redis"]:
    """A client of the emptied server."""
    with server.client(decode_responses=True) as client:
        client.flushall()
        client.config_resetstat()
        yield client


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SESIONES_REDIS_TIMEOUT", "2")  # a busy machine


@pytest.fixture
def sesiones(server: RedisServer, own: "Redis", capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(server.url, capsys)
