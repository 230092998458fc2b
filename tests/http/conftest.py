"""Fixtures of the tests of HTTP."""

from collections.abc import AsyncIterator, Iterator

import pytest
from redis import Redis
from starlette.applications import Starlette

from sesiones.http.fast_check import FastCheckProtocol
from sesiones.http.patterns import RequestPatterns
from sesiones.http.protocol import HttpProtocol
from sesiones.http.templates import RequestTemplates
from tests.harness.api import Client, open_app
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service


@pytest.fixture
async def app(redis_server: RedisServer, redis: "Redis") -> AsyncIterator[Starlette]:
    app = open_app(redis_server.url)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture(params=["in process", "over a socket"])
async def client(
    request: pytest.FixtureRequest, redis_server: RedisServer, redis: "Redis", service: Service
) -> AsyncIterator[Client]:
    if request.param == "over a socket":
        yield Client(None, service)
    else:
        app = open_app(redis_server.url)
        async with app.router.lifespan_context(app):
            yield Client(app, None)


@pytest.fixture
def token(redis: "Redis", service: Service) -> bytes:
    raw: str = service.new_session()["Token_Sesion"]
    return raw.encode()


@pytest.fixture
def nothing_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """At first the process has neither request templates nor request patterns."""
    monkeypatch.setattr(FastCheckProtocol, "templates", RequestTemplates())
    monkeypatch.setattr(FastCheckProtocol, "patterns", RequestPatterns())


@pytest.fixture
def parsed_heads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What goes to the parser."""
    heads: list[bytes] = []
    parse = HttpProtocol.data_received

    def data_received(self: HttpProtocol, data: bytes) -> None:
        heads.append(data)
        parse(self, data)

    monkeypatch.setattr(HttpProtocol, "data_received", data_received)
    return heads


@pytest.fixture(scope="module")
def no_error_logged(service: Service) -> Iterator[None]:
    """Whatever the tests of a module send, it is no error of the service."""
    before = len(service.log)
    yield
    assert " ERROR " not in service.log[before:]


@pytest.fixture(scope="module")
def slow_redis() -> Iterator[RedisServer]:
    """A server for tests that hold it up with SIGSTOP."""
    with RedisServer() as server:
        yield server
