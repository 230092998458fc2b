"""Stores on a server of the tests, replicas of it, and what tests of a service have in common."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sesiones.policy import SessionPolicy
from sesiones.redis_client import Commands
from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer
from tests.harness.service import comes_true

KEY = "k" * 32
EXAMPLES = int(os.environ.get("SESIONES_TEST_EXAMPLES", "50"))
"""Examples of a property-based test; raise it for a long run."""


def service_variables(url: str) -> dict[str, str]:
    """Of a service with a key on that Redis, with patience for a busy machine."""
    return {
        "SESIONES_REDIS_URL": url,
        "SESIONES_SERVICE_KEY": KEY,
        "SESIONES_REDIS_TIMEOUT": "5",
    }


Opener = Callable[..., SessionStore]
"""open_store(), or what does the same and closes the stores at the end of the test."""


def open_store(url: str, *, timeout_seconds: float = 5.0, **options: Any) -> SessionStore:
    """A store with the service's defaults, but patience for a busy machine."""
    return SessionStore.from_url(url, timeout_seconds=timeout_seconds, **options)


def store_on(
    commands: Any,
    kind: Callable[..., SessionStore] = SessionStore,
    *,
    timeout_seconds: float = 5.0,
    why_seconds: int = 0,
    **policy: Any,
) -> SessionStore:
    """A store on commands that exist, with the service's defaults."""
    return kind(
        lambda: commands,
        SessionPolicy(**policy),
        key_prefix="sesiones",
        timeout_seconds=timeout_seconds,
        why_seconds=why_seconds,
    )


class WrappedCommands:
    """Commands that do what others do, but for what a subclass changes."""

    def __init__(self, commands: Commands) -> None:
        self.commands = commands

    def __getattr__(self, name: str) -> Any:
        return getattr(self.commands, name)

    def connection(self, keys: Sequence[str]) -> None:
        """None is open, so that every command comes to execute()."""

    async def execute(self, *arguments: Any, **how: Any) -> Any:
        return await self.commands.execute(*arguments, **how)


@contextmanager
def replica_of(server: RedisServer, **options: Any) -> Iterator[RedisServer]:
    """One that has all the server has, by its port; ``options``: over redis.conf's."""
    with (
        # Without the delay the server would wait 5 s for more replicas.
        server.client() as master,
        RedisServer(port=str(free_port()), **options) as replica,
        replica.client() as client,
    ):
        master.config_set("repl-diskless-sync-delay", 0)
        client.replicaof("127.0.0.1", server.port)
        # Valkey asks the replicas of a client that has written something, and no other.
        assert comes_true(lambda: master.set("x", 1, px=1) and master.wait(1, 20) == 1, 10)
        yield replica


async def available(ask: Callable[[], Awaitable[Any]], seconds: float = 40) -> Any:
    """What ``ask`` returns, asked again while it is unavailable, for so long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
