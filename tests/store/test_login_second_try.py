"""Logins whose reply is lost, and that are tried again: one session is made, and each session that
ended has one tombstone, one line in the log and one count."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import Redis

from sesiones import tokens
from sesiones.sesion import LimitReached, Login, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.metrics import counted
from tests.harness.records import NEIGHBOUR, index, index_key, indexed, keys, session_key, state
from tests.harness.redis_server import RedisServer
from tests.harness.relay import Relay
from tests.harness.stores import Opener, open_store
from tests.store.ended import endings, exists
from tests.store.lost_reply import LostReply

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def behind_relay(
    server: RedisServer, lost: LostReply, **options: Any
) -> AsyncIterator[SessionStore]:
    """A store whose connection is open and whose server knows the scripts: the next reply is that
    of the next operation."""
    with Relay(server.socket, lambda: lost) as relay:
        async with open_store(f"redis://127.0.0.1:{relay.port}", **options) as store:
            await store.probe(5)
            yield store


def ended_metrics(store: SessionStore) -> dict[str, float]:
    return {name: value for name, value in counted(store.metrics).items() if "ended" in name}


def endings_kept(redis: Redis) -> list[str]:
    return [key for key in keys(redis) if "}:e:" in key]


LOGINS: dict[str, Any] = {
    "Token_Anterior": (lambda own, _: Login(Token_Anterior=own.Token_Sesion), "replaced", [0]),
    "of a neighbour": (lambda _, other: Login(Token_Anterior=other.Token_Sesion), "replaced", [2]),
    "Sustituye": (lambda own, _: Login(Sustituye=own.ID_Sesion), "replaced", [0]),
    "Cerrar_Otras": (lambda *_: Login(Cerrar_Otras=1), "others", [0, 1]),
    "Max_Sesiones": (lambda *_: Login(Max_Sesiones=1), "limit", [0, 1]),
}


@pytest.mark.parametrize("asked", LOGINS)
async def test_second_try_records_what_the_first_ended(
    redis_server: RedisServer, redis: Redis, caplog: pytest.LogCaptureFixture, asked: str
) -> None:
    make, reason, which = LOGINS[asked]
    lost = LostReply()
    async with behind_relay(redis_server, lost) as store:
        old = [await store.create(user, name) for user, name in ((7, "a"), (7, "b"), (2061, "c"))]
        caplog.set_level(logging.INFO)
        await lost.arm(store)
        new = await store.create(7, "new", make(old[0], old[2]))
        ended = [old[at] for at in which]
        assert exists(redis, *old, new) == [sesion not in ended for sesion in (*old, new)]
        assert endings(caplog) == {sesion.ID_Sesion: reason for sesion in ended}
        assert ended_metrics(store) == {f"sesiones_sessions_ended_total['{reason}']": len(ended)}
        # A master that lacks the deletions brings none of them back.
        for sesion in ended:
            assert session_key(sesion.Token_Sesion) in store._tombstones
        assert counted(store.metrics)["sesiones_sessions_created_total[]"] == 4


async def test_second_try_of_a_plain_create_records_what_the_limit_ended(
    redis_server: RedisServer, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    lost = LostReply()
    async with behind_relay(redis_server, lost, max_per_user=2) as store:
        old, kept = [await store.create(7, "d", Login(Ventana=100 + i)) for i in range(2)]
        caplog.set_level(logging.INFO)
        await lost.arm(store)
        new = await store.create(7, "new")
        assert index(redis, 7) == indexed(kept, new)
        assert endings(caplog) == {old.ID_Sesion: "limit"}
        assert session_key(old.Token_Sesion) in store._tombstones


async def test_second_try_ends_nothing_more(redis: Redis, open_more: Opener) -> None:
    """Of what the login asks for, though there is something to end again by then."""
    store = open_more(max_per_user=2, at_limit="refuse")
    token = tokens.make(7)
    old = await store.create(7, "old")
    login = Login(60, 60, old.Token_Sesion, 1, 1, old.ID_Sesion)
    made = await store._create(7, "new", token, login)
    later = await store.create(7, "later")
    before = state(redis)
    assert await store._create(7, "new", token, login) == made
    assert state(redis) == before
    assert index(redis, 7) == indexed(made, later)


async def test_second_try_makes_a_session_anew_and_records_what_both_tries_ended(
    redis: Redis, open_more: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    """The session of the first try has ended in between."""
    node, other = open_more(), open_more()
    old = await other.create(7, "old")
    token = tokens.make(7)
    await other._create(7, "new", token, Login(Cerrar_Otras=1))
    assert await other.end(token, token) == 1
    later = await other.create(7, "later")
    caplog.set_level(logging.INFO)
    made = await node._create(7, "new", token, Login(Cerrar_Otras=1))
    assert index(redis, 7) == indexed(made)
    assert endings(caplog) == {old.ID_Sesion: "others", later.ID_Sesion: "others"}


async def test_what_a_login_ended_is_kept_for_a_second_try_alone(
    redis: Redis, open_more: Opener
) -> None:
    """For as long as one may come, without a token, and only where something has ended."""
    store = open_more(timeout_seconds=2.5)
    old = await store.create(7, "a")
    assert endings_kept(redis) == []
    new = await store.create(7, "b", Login(Cerrar_Otras=1))
    (key,) = endings_kept(redis)
    assert key.rpartition(":")[2] == session_key(new.Token_Sesion).rpartition(":")[2]
    assert 3 <= redis.ttl(key) <= 4
    assert old.Token_Sesion not in str(redis.hgetall(key))


async def test_session_whose_login_ended_another_takes_no_more_memory(
    redis: Redis, open_more: Opener
) -> None:
    store = open_more()
    for login in Login(), Login(Cerrar_Otras=1):
        sesion = await store.create(7, "d", login)
        assert redis.hkeys(session_key(sesion.Token_Sesion)) == [b"1"]


async def test_endings_are_recorded_once_though_no_replica_confirms_and_the_answer_is_lost(
    redis_server: RedisServer, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The script's first reply has come. The connection is lost with WAIT's, so that the second try
    is told of the same endings."""
    lost = LostReply(to="WAIT")
    async with behind_relay(redis_server, lost, wait_replicas=1) as store:
        async with open_store(redis_server.url) as other:
            old = await other.create(7, "old")
        caplog.set_level(logging.INFO)
        await lost.arm(store)
        with pytest.raises(StoreUnavailable, match="confirmed by 0 of 1"):
            await store.create(7, "new", Login(Cerrar_Otras=1))
        assert not lost.next_is_lost
        assert redis.zcard(index_key(7)) == 1
        assert endings(caplog) == {old.ID_Sesion: "others"}
        assert ended_metrics(store) == {"sesiones_sessions_ended_total['others']": 1}


async def test_second_try_of_a_refused_login_is_refused(
    redis_server: RedisServer, redis: Redis
) -> None:
    lost = LostReply()
    async with behind_relay(redis_server, lost, at_limit="refuse", max_per_user=1) as store:
        old = await store.create(7, "old")
        previous = await store.create(NEIGHBOUR, "d")
        before = state(redis)
        await lost.arm(store)
        with pytest.raises(LimitReached):
            await store.create(7, "new", Login(Token_Anterior=previous.Token_Sesion))
        assert state(redis) == before
        assert exists(redis, old) == [True]
