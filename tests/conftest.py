"""Fixtures: a real Redis or Valkey server, a store on it, and the service as a process."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis import Redis

from scripts.redis_server import RedisServer, free_port
from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore
from tests.service import TOKEN, Service, comes_true

KEY = "k" * 32


class _TokensLogged(logging.Handler):
    """Looks for tokens in what the code under test logs in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = logging.Formatter().format(record)
        if TOKEN.search(text):
            self.found.append(text)


@pytest.fixture(scope="session", autouse=True)
def no_token_in_any_log() -> Iterator[None]:
    """Of the whole run; Service looks through the logs of its processes."""
    handler = _TokensLogged()
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)
    assert handler.found == []


EXAMPLES = int(os.environ.get("SESIONES_TEST_EXAMPLES", "50"))
"""Examples of a property-based test; raise it for a long run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "redis_server" in getattr(item, "fixturenames", ()):
            item.add_marker("redis")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A server of the whole run. Tests that stop or reconfigure one start their own."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator["Redis"]:
    """A plain client on the emptied server, to see what is really there."""
    with Redis(unix_socket_path=str(redis_server.socket)) as client:
        client.flushall()
        yield client


def open_store(url: str, *, timeout_seconds: float = 5.0, **options: Any) -> SessionStore:
    """A store with the service's defaults, but patience for a busy machine."""
    return SessionStore.from_url(url, timeout_seconds=timeout_seconds, **options)


@contextmanager
def replica_of(server: RedisServer, **options: Any) -> Iterator[RedisServer]:
    """One that has all the server has, by its port; ``options``: over redis.conf's."""
    with (
        # Without the delay the server would wait 5 s for more replicas.
        Redis(unix_socket_path=str(server.socket)) as master,
        RedisServer(port=str(free_port()), **options) as replica,
        Redis(unix_socket_path=str(replica.socket)) as client,
    ):
        master.config_set("repl-diskless-sync-delay", 0)
        client.replicaof("127.0.0.1", server.port)
        # Valkey asks the replicas of a client that has written something, and no other.
        assert comes_true(lambda: master.set("x", 1, px=1) and master.wait(1, 20) == 1, 10)
        yield replica


async def available(ask: Callable[[], Awaitable[Any]], seconds: float) -> Any:
    """What it returns, once it is available."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


@pytest.fixture
async def store(redis_server: RedisServer, redis: "Redis") -> AsyncIterator[SessionStore]:
    store = open_store(redis_server.url)
    yield store
    await store.aclose()


@pytest.fixture(scope="session")
def service(redis_server: RedisServer) -> Iterator[Service]:
    """The service as a process, with a service key; its sessions are never flushed under it by
    the `redis` fixture unless the test asks for both."""
    with Service(
        SESIONES_REDIS_URL=redis_server.url,
        SESIONES_SERVICE_KEY=KEY,
        SESIONES_REDIS_TIMEOUT="5",
    ) as service:
        yield service
