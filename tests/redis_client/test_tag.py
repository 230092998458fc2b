"""The tag of a script's reply: should a connection hand callers each other's replies, whatever the
bug, each of those calls is a 503, the connections are closed and the log says so. No caller ever
has another user's session."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

import hiredis
import pytest

from sesiones.redis_client import Commands, connect
from sesiones.sesion import Sesion, StoreUnavailable
from sesiones.store import SessionStore, scripts
from tests.harness.fake_redis import packed
from tests.harness.records import session_key
from tests.harness.stores import WrappedCommands, available, open_store, store_on
from tests.redis_client.relays import relays_before

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

TIMEOUT_SECONDS = 0.5
SERVER_AND_CLUSTER = pytest.mark.parametrize("deployment_url", ["server", "cluster"], indirect=True)
ERROR = "a connection to Redis is out of step"


class Mixed(WrappedCommands):
    """Commands that hand the two calls that are out each other's reply (``swap``), or each call
    the reply of the one before it (``shift``); while ``on`` is set."""

    def __init__(self, commands: Commands, how: str) -> None:
        super().__init__(commands)
        self._how = how
        self.on = False
        self.mixed = self.resets = 0
        self._held: asyncio.Future[Any] | None = None
        self._before: Any = None

    def reset(self) -> None:
        self.resets += 1
        self.commands.reset()

    async def execute(self, *arguments: Any, on_reply: Any = None, **how: Any) -> Any:
        reply = await self.commands.execute(*arguments, **how)
        if self.on and arguments[0] in ("EVALSHA", "EVAL"):
            reply = await self._mix(reply)
        return on_reply(reply) if on_reply else reply

    async def execute_on_master(self, *arguments: Any, **how: Any) -> Any:
        reply = await self.commands.execute_on_master(*arguments, **how)
        return await self._mix(reply) if self.on else reply

    async def _mix(self, reply: Any) -> Any:
        self.mixed += 1
        if self._how == "shift":
            reply, self._before = self._before, reply
            return reply
        if self._held is None:
            self._held = asyncio.get_running_loop().create_future()
            mine = self._held
            mine.reply = reply  # type: ignore[attr-defined]
            return await mine
        other, self._held = self._held, None
        other.set_result(reply)
        return other.reply  # type: ignore[attr-defined]


@pytest.fixture(params=["swap", "shift"])
async def mixed(deployment_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Mixed]:
    commands = Mixed(connect(deployment_url, TIMEOUT_SECONDS), request.param)
    yield commands
    await commands.aclose()


OPERATIONS: dict[str, Callable[[SessionStore, Sesion], Coroutine[Any, Any, Any]]] = {
    "find": lambda store, own: store.find(own.Token_Sesion),
    "create": lambda store, own: store.create(own.ID_Usuario, "another"),
    "update": lambda store, own: store.update(own._replace(Dispositivo="renamed")),
    "end": lambda store, own: store.end(own.Token_Sesion, own.Token_Sesion),
    "end_all": lambda store, own: store.end_all(own.Token_Sesion, own.Token_Sesion),
    "sessions": lambda store, own: store.sessions(own.ID_Usuario),
    "end_user": lambda store, own: store.end_user(own.ID_Usuario),
}


@SERVER_AND_CLUSTER
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_reply_of_another_call_is_unavailable(
    mixed: Mixed, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_on(mixed, timeout_seconds=TIMEOUT_SECONDS)
    users = [random.randrange(10**9) for _ in range(2)]
    own = [await store.create(user, f"of {user}") for user in users]
    caplog.clear()
    caplog.set_level(logging.INFO)
    mixed.on = True
    # One after the other: checks of one turn would share a call.
    first = asyncio.create_task(OPERATIONS[operation](store, own[0]))
    await asyncio.sleep(0.05)
    results = await asyncio.gather(
        first, OPERATIONS[operation](store, own[1]), return_exceptions=True
    )
    mixed.on = False
    assert mixed.mixed >= 2
    assert all(isinstance(result, StoreUnavailable) for result in results), results
    assert mixed.resets >= 1
    records = [record for record in caplog.records if record.message.startswith(ERROR)]
    assert records
    assert all(record.levelno == logging.ERROR for record in records)
    # What a callback made of it: no tombstone and no line for what another call has ended.
    assert not [record for record in caplog.records if record.message.startswith("ended")]
    assert not [record for record in caplog.records if record.message.startswith("created")]
    assert not store._tombstones.any_of(session_key(sesion.Token_Sesion) for sesion in own)
    # And then it is as good as new.
    made = await store.create(users[0], "after")
    found = await store.find(made.Token_Sesion)
    assert found is not None
    assert (found.ID_Usuario, found.Dispositivo) == (users[0], "after")
    await store.aclose()


def untagged(_: bytes, tagged: Any) -> Any:
    """scripts.untagged() without the comparison of the tags."""
    return tagged[1] if len(tagged) > 1 else None


@SERVER_AND_CLUSTER
async def test_without_the_tag_a_caller_has_another_users_session(
    deployment_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests of the tag can fail: this is what they would find."""
    mixed = Mixed(connect(deployment_url, TIMEOUT_SECONDS), "swap")
    store = store_on(mixed, timeout_seconds=TIMEOUT_SECONDS)
    own = [await store.create(user, f"of {user}") for user in (11, 12)]
    monkeypatch.setattr(scripts, "untagged", untagged)
    mixed.on = True
    first = asyncio.create_task(store.find(own[0].Token_Sesion))
    await asyncio.sleep(0.05)
    found = await asyncio.gather(first, store.find(own[1].Token_Sesion))
    assert [sesion and sesion.ID_Usuario for sesion in found] == [12, 11]
    mixed.on = False
    await store.aclose()


# On the way: a relay repeats a reply, or swallows one.


class Spoiler:
    """Makes the filters of relays. ``spoil``: how many of the next replies come ``twice``, or
    ``never``."""

    def __init__(self, how: str) -> None:
        self._times = 2 if how == "twice" else 0
        self.spoil = self.spoilt = 0

    def new_filter(self) -> Callable[[bytes], bytes]:
        reader = hiredis.Reader()

        def spoil(piece: bytes) -> bytes:
            reader.feed(piece)
            passed = b""
            while (reply := reader.gets()) is not False:
                data = packed(reply)
                times = 1
                # Only replies of scripts that found a session: the others look alike.
                if self.spoil and isinstance(reply, list) and len(data) > 60:
                    self.spoil -= 1
                    self.spoilt += 1
                    times = self._times
                passed += data * times
            return passed

        return spoil


async def check_beside_spoilt_replies(
    store: SessionStore, spoiler: Spoiler, users: int = 120, replies: int = 9
) -> list[tuple[int, Any]]:
    """Each user, and what find() gave for its token, of checks at any moment while so many
    replies are spoilt."""
    own = await asyncio.gather(
        *(available(partial(store.create, user, f"of {user}"), 20) for user in range(users))
    )
    outcomes: list[tuple[int, Any]] = []

    async def check(user: int) -> None:
        for _ in range(1800 // users):
            try:
                found: Any = await store.find(own[user].Token_Sesion)
            except StoreUnavailable as error:
                found = error
            outcomes.append((user, found))
            await asyncio.sleep(random.random() * 0.02)

    spoiler.spoil = replies
    await asyncio.gather(*(check(user) for user in range(users)))
    assert spoiler.spoilt >= 3
    return outcomes


@SERVER_AND_CLUSTER
@pytest.mark.parametrize("how", ["twice", "never"])
async def test_reply_that_comes_twice_or_never_gives_no_caller_anothers_session(
    deployment_url: str, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoiler = Spoiler(how)
    with relays_before(deployment_url, monkeypatch, spoiler.new_filter) as (through, relays):
        async with open_store(through, timeout_seconds=TIMEOUT_SECONDS, touch_seconds=60) as store:
            outcomes = await check_beside_spoilt_replies(store, spoiler)
    wrong = [
        (user, found)
        for user, found in outcomes
        if not isinstance(found, StoreUnavailable) and (found is None or found.ID_Usuario != user)
    ]
    assert wrong == []
    assert sum(isinstance(found, Sesion) for _, found in outcomes) > len(outcomes) / 3
    assert any(relay.connections > 1 for relay in relays.values())
    if any(isinstance(found, StoreUnavailable) for _, found in outcomes):
        assert ERROR in caplog.text or "Redis is unavailable" in caplog.text


@pytest.mark.parametrize("deployment_url", ["server"], indirect=True)
async def test_without_the_tag_a_reply_that_comes_twice_gives_another_users_session(
    deployment_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts, "untagged", untagged)
    spoiler = Spoiler("twice")
    with relays_before(deployment_url, monkeypatch, spoiler.new_filter) as (through, _):
        async with open_store(through, timeout_seconds=TIMEOUT_SECONDS, touch_seconds=60) as store:
            # Few users: a call carries a check or two, and the next one's reply has the same shape.
            outcomes = await check_beside_spoilt_replies(store, spoiler, users=9, replies=200)
    assert [user for user, found in outcomes if getattr(found, "ID_Usuario", user) != user]
