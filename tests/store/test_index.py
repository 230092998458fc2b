"""The index of a user, which is what logoutAll believes: a session that it has lost ends when it is
used, and what it drops goes with its key."""

import asyncio
import logging
import time
from typing import Any

import pytest
from redis import Redis

from sesiones import tokens
from sesiones.redis_client import connect
from sesiones.sesion import Immutable, Refusal, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.metrics import counted
from tests.harness.records import (
    NEIGHBOUR,
    age,
    digest,
    index,
    index_key,
    indexed,
    lua,
    now,
    session_key,
    state,
)
from tests.harness.redis_server import RedisServer
from tests.harness.relay import Relay
from tests.harness.stores import Opener, store_on

pytestmark = pytest.mark.anyio


LOST: dict[str, Any] = {
    "evicted": lambda redis, sesion: redis.delete(index_key(7)),
    "has another session": lambda redis, sesion: (
        redis.zadd(index_key(7), {"other": sesion.Fecha_Expiracion}),
        redis.zrem(index_key(7), digest(sesion.Token_Sesion)),
    ),
}
"""How a session's index may lose it, while its key is there."""
LOSSES = pytest.mark.parametrize("lost", LOST)


@LOSSES
@pytest.mark.parametrize("times", [1, 3])
async def test_slide_ends_an_unindexed_session(
    redis: Redis, store: SessionStore, caplog: pytest.LogCaptureFixture, lost: str, times: int
) -> None:
    """``times``: how often one batch asks for the session."""
    caplog.set_level(logging.INFO)
    sesion = age(redis, await store.create(7, "d"), 100)
    others = [age(redis, await store.create(user, "d"), 100) for user in (NEIGHBOUR, 8)]
    key = session_key(sesion.Token_Sesion)
    LOST[lost](redis, sesion)
    before, stored = index(redis, 7), redis.dump(key)
    found = await asyncio.gather(
        *(store.find(each.Token_Sesion) for each in (others[0], *[sesion] * times, others[1]))
    )
    assert [seen and seen.ID_Usuario for seen in found] == [NEIGHBOUR, *[None] * times, 8]
    assert not redis.exists(key)
    assert index(redis, 7) == before
    name = tokens.fingerprint(sesion.Token_Sesion)
    ended = f"ended session {sesion.ID_Sesion} of user 7, ses_#{name}: unindexed"
    assert [line for line in caplog.messages if line.startswith("ended")] == [ended]
    assert counted(store.metrics)["sesiones_sessions_ended_total['unindexed']"] == 1
    assert counted(store.metrics)["sesiones_slides_total[]"] == 2
    # Nor does it come back with a master that does not know that it has ended.
    assert stored is not None
    redis.restore(key, 1_000_000, stored)
    assert await store.find(sesion.Token_Sesion) is None


async def test_slide_answered_after_its_deadline_still_leaves_a_tombstone(
    redis_server: RedisServer, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The session has ended in Redis, whether the caller still waits or not."""
    caplog.set_level(logging.INFO)
    delays_seconds = [0.0]

    def delay(piece: bytes) -> bytes:
        time.sleep(delays_seconds[0])
        return piece

    with Relay(redis_server.socket, lambda: delay) as relay:
        commands = connect(f"redis://127.0.0.1:{relay.port}", 5.0)
        store = store_on(commands, timeout_seconds=0.5)
        sesion = age(redis, await store.create(7, "d"), 100)
        other = age(redis, await store.create(8, "d"), 100)
        assert await store.find(other.Token_Sesion)  # the script is loaded
        key = session_key(sesion.Token_Sesion)
        stored = redis.dump(key)
        redis.delete(index_key(7))
        delays_seconds[0] = 1.0
        with pytest.raises(StoreUnavailable):
            await store.find(sesion.Token_Sesion)
        assert not redis.exists(key)
        await asyncio.sleep(1.0)
        delays_seconds[0] = 0.0
        name = tokens.fingerprint(sesion.Token_Sesion)
        ended = f"ended session {sesion.ID_Sesion} of user 7, ses_#{name}: unindexed"
        assert [line for line in caplog.messages if line.startswith("ended")] == [ended]
        assert counted(store.metrics)["sesiones_sessions_ended_total['unindexed']"] == 1
        assert stored is not None
        redis.restore(key, 1_000_000, stored)
        assert await store.find(sesion.Token_Sesion) is None
        await store.aclose()


@LOSSES
@pytest.mark.parametrize("seconds", [0, -60])
@pytest.mark.parametrize("estado", [1, 0])
async def test_update_ends_an_unindexed_session(
    redis: Redis, store: SessionStore, lost: str, seconds: int, estado: int
) -> None:
    """Whether it changes the expiry or not, and whether the session is active or not."""
    sesion = (await store.create(7, "d"))._replace(Estado_Sesion=estado)
    assert await store.update(sesion) == sesion
    LOST[lost](redis, sesion)
    later = sesion._replace(Fecha_Expiracion=sesion.Fecha_Expiracion + seconds)
    assert await store.update(later) is None
    assert not redis.exists(session_key(sesion.Token_Sesion))
    assert counted(store.metrics)["sesiones_sessions_ended_total['unindexed']"] == 1


@LOSSES
async def test_unindexed_session_does_not_survive_end_all(
    redis: Redis, store: SessionStore, lost: str
) -> None:
    sesion = age(redis, await store.create(7, "d"), 100)
    LOST[lost](redis, sesion)
    caller = (await store.create(7, "e")).Token_Sesion
    assert await store.end_all(caller, caller) == 1
    assert await store.find(sesion.Token_Sesion) is None


@LOSSES
@pytest.mark.parametrize("call", ["list", "end_one", "end_others"])
async def test_caller_that_its_index_has_lost_manages_no_session(
    redis: Redis, open_more: Opener, lost: str, call: str
) -> None:
    """It is refused as if it had ended, which it has at its next slide. Nothing ends by it."""
    store = open_more(touch_seconds=60)
    caller, other = [await store.create(7, name) for name in "ab"]
    LOST[lost](redis, caller)
    token = caller.Token_Sesion
    before = state(redis)
    match call:
        case "list":
            assert await store.list_sessions(token) is None
        case "end_one":
            for number in caller.ID_Sesion, other.ID_Sesion, 1:
                assert await store.end_one(token, number) is Refusal.UNAUTHENTICATED
        case "end_others":
            assert await store.end_others(token) is Refusal.UNAUTHENTICATED
    assert state(redis) == before
    age(redis, caller, 100)
    LOST[lost](redis, caller)
    assert await store.find(token) is None


@pytest.mark.parametrize("operation", ["create", "find", "update", "end", "end_others"])
async def test_write_to_an_index_without_an_expiry_gives_it_one(
    redis: Redis, open_more: Opener, operation: str
) -> None:
    """Else it would stay after its sessions. No script of ours leaves one, but PERSIST does."""
    store = open_more(touch_seconds=0)
    mine, other = [await store.create(7, name) for name in "ab"]
    redis.persist(index_key(7))
    match operation:
        case "create":
            await store.create(7, "c")
        case "find":
            await store.find(mine.Token_Sesion)
        case "update":
            await store.update(mine)
        case "end":
            await store.end(mine.Token_Sesion, other.Token_Sesion)
        case "end_others":
            await store.end_others(mine.Token_Sesion)
    assert redis.expiretime(index_key(7)) == max(index(redis, 7).values())


@LOSSES
async def test_refused_update_ends_no_unindexed_session(
    redis: Redis, store: SessionStore, lost: str
) -> None:
    sesion = await store.create(7, "d")
    LOST[lost](redis, sesion)
    given = sesion._replace(ID_Usuario=8)
    assert await store.update(given) == Immutable(("ID_Usuario",))
    assert redis.exists(session_key(sesion.Token_Sesion))


@pytest.mark.parametrize(
    "operation",
    ["create", "find", "update", "end", "end_all", "end_user", "end_again", "end_begun"],
)
async def test_pruning_an_index_deletes_the_keys_that_it_names(
    redis: Redis, store: SessionStore, operation: str
) -> None:
    """A key that stayed would be a session outside its index when the clock steps back."""
    made = [age(redis, await store.create(7, name), 100) for name in "abcd"]
    neighbour = await store.create(NEIGHBOUR, "d")
    mine, other, *expired = made
    redis.zadd(index_key(7), {digest(s.Token_Sesion): now(redis) for s in expired})
    match operation:
        case "create":
            await store.create(7, "e")
        case "find":
            assert await store.find(mine.Token_Sesion) is not None
        case "update":
            assert await store.update(mine) is not None
        case "end":
            assert await store.end(mine.Token_Sesion, other.Token_Sesion) == 1
        case "end_all":
            assert await store.end_all(mine.Token_Sesion, mine.Token_Sesion) == 2
        case "end_user":
            assert await store.end_user(7, other.ID_Sesion) == 1
        case "end_again":
            redis.eval(lua("end_again"), 1, session_key(other.Token_Sesion))
        case "end_begun":
            redis.eval(lua("end_begun"), 1, session_key(other.Token_Sesion), "")
    assert not redis.exists(*(session_key(s.Token_Sesion) for s in expired))
    assert not index(redis, 7).keys() & indexed(*expired).keys()
    assert redis.exists(session_key(neighbour.Token_Sesion))
