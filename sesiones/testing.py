"""For the tests of an application: a SessionStore in memory, on a clock that only the test moves.
Needs pytest and fakeredis: ``pip install 'sesiones[testing]'``.

pytest_plugins = ["sesiones.testing"]  # in conftest.py

async def test_idle_user_is_logged_out(session_store, session_clock):
    sesion = await session_store.create(7, "laptop")
    session_clock.now += 1800
    assert await session_store.find(sesion.Token_Sesion) is None
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fakeredis
import pytest

from sesiones.policy import SessionPolicy
from sesiones.redis_client import Argument, Execute, Listener, OnReply
from sesiones.redis_client.subscription import Lease, OnLease, OnMessage
from sesiones.settings import Settings
from sesiones.store import SessionStore

START = 1_700_000_000
"""The time at which a Clock begins, in epoch seconds."""


class Clock:
    """The time of Redis, in epoch seconds, which stands still until a test changes ``now``.

    It stands in for the time module wherever fakeredis looks at the time: for a key's expiry (once
    a command), for relative ones, and for TIME, in a script too.
    """

    def __init__(self) -> None:
        self.now: float = START

    def time(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for module in ("_helpers", "_socket._base", "commands_mixins.server_mixin"):
            patch.setattr(f"fakeredis.{module}.time", self)


class ClockedRedis:
    """Commands on fakeredis, which cannot load a script whose first line is `#!lua`, and has no
    ROLE."""

    batch_max = 256
    in_flight_max = 2
    node_of = None

    def __init__(self) -> None:
        self.redis = fakeredis.FakeRedis(server=fakeredis.FakeServer())

    async def execute(
        self,
        *arguments: Argument,
        keys: Sequence[str] = (),
        reads: bool = False,
        replicas: int = 0,
        safe_to_repeat: bool = False,
        on_reply: OnReply | None = None,
        sent: object = None,
    ) -> Any:
        reply = await self._execute(*arguments)
        return reply if on_reply is None else on_reply(reply)

    async def _execute(self, *arguments: Argument) -> Any:
        if arguments[0] == "EVAL":
            source = str(arguments[1])
            assert source.startswith("#!lua")
            arguments = ("EVAL", source.partition("\n")[2], *arguments[2:])
        elif arguments[0] == "ROLE":
            return [b"master", 0, []]
        return self.redis.execute_command(*arguments)  # type: ignore[no-untyped-call]

    async def execute_on_master(
        self, *arguments: Argument, keys: Sequence[str], safe_to_repeat: bool = False
    ) -> Any:
        return await self.execute(*arguments)

    def connection(self, keys: Sequence[str]) -> None:
        """No connection is open: every command is sent by execute()."""

    async def masters(self) -> dict[str, Execute]:
        return {"redis": self.execute}

    async def sentinels(self) -> dict[str, Execute]:
        return {}

    def last_answered_sent_at(self, bucket: str) -> float:
        return time.monotonic()

    def on_owner_change(self, listener: Listener) -> None:
        """There is no connection that could be lost."""

    def subscribe(self, channel: str, on_message: OnMessage, on_lease: OnLease) -> None:
        """No message comes, so no lease begins."""

    def lease(self, bucket: str) -> Lease:
        return Lease()

    def reset(self) -> None:
        """There is no connection to drop."""

    async def aclose(self) -> None:
        self.redis.close()


@pytest.fixture
def session_clock() -> Iterator[Clock]:
    """The time of the stores in memory. It moves when the test changes ``session_clock.now``."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        clock.install(patch)
        yield clock


@pytest.fixture
def open_session_store(session_clock: Clock) -> Callable[..., SessionStore]:
    """Opens stores that share the sessions of one test, as nodes on one Redis do. The arguments are
    those of SessionPolicy, such as ``idle_seconds``; the defaults are the service's. Raises
    ValueError for what the settings refuse."""
    redis = ClockedRedis()

    def open_store(**arguments: Any) -> SessionStore:
        policy = SessionPolicy(**arguments)
        Settings.check(**arguments)
        return SessionStore(lambda: redis, policy, key_prefix="sesiones", timeout_seconds=5)

    return open_store


@pytest.fixture
def session_store(open_session_store: Callable[..., SessionStore]) -> SessionStore:
    """A store in memory, with the service's defaults. It works in any event loop and thread."""
    return open_session_store()
