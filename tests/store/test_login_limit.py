"""The limit of a user's sessions at a login: what ends, what is refused, what does not count."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from sesiones.sesion import LimitReached, Login, Sesion
from sesiones.store import SessionStore
from tests.harness.metrics import counted
from tests.harness.records import (
    NEIGHBOUR,
    index,
    index_key,
    indexed,
    session_key,
    state,
    write_record,
)
from tests.harness.stores import Opener
from tests.store.ended import endings, exists

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("allowed", [1, 2, 3, 4, 5])
async def test_limit_of_the_login_ends_those_that_expire_first(
    redis: Redis, store: SessionStore, caplog: pytest.LogCaptureFixture, allowed: int
) -> None:
    made = [await store.create(7, "d", Login(Ventana=100 + i)) for i in range(4)]
    caplog.set_level(logging.INFO)
    new = await store.create(7, "e", Login(Max_Sesiones=allowed))
    kept = made[max(0, 5 - allowed) :]
    assert index(redis, 7) == indexed(*kept, new)
    assert endings(caplog) == {s.ID_Sesion: "limit" for s in made if s not in kept}


async def test_what_a_login_ends_makes_room_before_the_limit(
    redis: Redis, open_more: Opener
) -> None:
    """Then nothing ends for the limit, and nothing is refused."""
    for at_limit in "end", "refuse":
        redis.flushall()
        store = open_more(max_per_user=2, at_limit=at_limit)
        first, second = [await store.create(7, "d", Login(Ventana=100 + i)) for i in range(2)]
        third = await store.create(7, "e", Login(Sustituye=second.ID_Sesion))
        assert index(redis, 7) == indexed(first, third)
        fourth = await store.create(7, "f", Login(Token_Anterior=third.Token_Sesion))
        assert index(redis, 7) == indexed(first, fourth)
        fifth = await store.create(7, "g", Login(Cerrar_Otras=1, Max_Sesiones=1))
        assert index(redis, 7) == indexed(fifth)


@pytest.mark.parametrize("user", [None, 7, NEIGHBOUR, 8])
async def test_refused_login_ends_nothing_and_lists_the_sessions(
    redis: Redis, open_more: Opener, user: int | None
) -> None:
    """Neither does it end another user's session, whose token it brings."""
    store = open_more(at_limit="refuse", max_per_user=3)
    made = [await store.create(7, name) for name in "abc"]
    previous = await store.create(user, "d") if user not in (None, 7) else None
    token = made[0].Token_Sesion if user == 7 else previous and previous.Token_Sesion
    before = state(redis)
    with pytest.raises(LimitReached) as refused:
        await store.create(7, "e", Login(Token_Anterior=token, Max_Sesiones=1))
    assert state(redis) == before
    assert refused.value.sessions == await store.sessions(7)
    assert {each.ID_Sesion for each in refused.value.sessions} == {s.ID_Sesion for s in made}
    assert "ses_" not in str(refused.value)


async def test_session_that_was_picked_after_a_refusal_makes_room(
    redis: Redis, open_more: Opener
) -> None:
    store = open_more(at_limit="refuse", max_per_user=2)
    made = [await store.create(7, name) for name in "ab"]
    with pytest.raises(LimitReached) as refused:
        await store.create(7, "c")
    picked = refused.value.sessions[0]
    new = await store.create(7, "c", Login(Sustituye=picked.ID_Sesion))
    left = [sesion for sesion in made if sesion.ID_Sesion != picked.ID_Sesion]
    assert index(redis, 7) == indexed(*left, new)


async def test_refusal_does_not_count_dead_sessions(redis: Redis, open_more: Opener) -> None:
    store = open_more(at_limit="refuse", max_per_user=1)
    dead = await store.create(7, "a")
    redis.zadd(index_key(7), {session_key(dead.Token_Sesion)[-22:]: dead.Fecha_Inicio - 1})
    assert (await store.create(7, "b")).ID_Usuario == 7


# Members of the index without a live session.


SPOILT: dict[str, Callable[[Any, str], object]] = {
    "no key": lambda redis, key: redis.delete(key),
    "a text of no session": lambda redis, key: redis.hset(key, "1", "x"),
    "no text": lambda redis, key: redis.hset(key, "x", "y") and redis.hdel(key, "1"),
    "invalid UTF-8": lambda redis, key: redis.hset(key, "1", redis.hget(key, "1") + b"\xff"),
    "no device": lambda redis, key: write_record(redis, key, dispositivo=""),
    "a date beyond any": lambda redis, key: write_record(redis, key, inicio="9" * 20),
    "no expiry": lambda redis, key: redis.persist(key),
    "no hash": lambda redis, key: redis.set(key, "x", keepttl=True),
    "expired": lambda redis, key: redis.expireat(key, 1),
}


def spoil(redis: Redis, how: str, *sesiones: Sesion) -> None:
    for sesion in sesiones:
        SPOILT[how](redis, session_key(sesion.Token_Sesion))


@pytest.mark.parametrize("how", SPOILT)
async def test_refusal_counts_the_sessions_that_it_lists_alone(
    redis: Redis, open_more: Opener, how: str
) -> None:
    """With none in the list the user would have none to pick, and could not log in."""
    store = open_more(at_limit="refuse", max_per_user=3)
    kept, *spoilt = [await store.create(7, name) for name in "abc"]
    spoil(redis, how, *spoilt)
    before = state(redis)
    with pytest.raises(LimitReached) as refused:
        await store.create(7, "d", Login(Max_Sesiones=1))
    assert [each.ID_Sesion for each in refused.value.sessions] == [kept.ID_Sesion]
    if how != "invalid UTF-8":  # of which the script does not know: it has ended it
        assert state(redis) == before
    made = [kept, *[await store.create(7, name) for name in "de"]]
    assert index(redis, 7) == indexed(*made)
    assert exists(redis, *spoilt) == [False, False]
    with pytest.raises(LimitReached) as refused:
        await store.create(7, "f")
    assert {each.ID_Sesion for each in refused.value.sessions} == {s.ID_Sesion for s in made}


@pytest.mark.parametrize("how", SPOILT)
async def test_user_without_a_live_session_is_not_refused(
    redis: Redis, open_more: Opener, how: str
) -> None:
    store = open_more(at_limit="refuse", max_per_user=1)
    spoil(redis, how, await store.create(7, "a"))
    made = await store.create(7, "b")
    assert index(redis, 7) == indexed(made)


@pytest.mark.parametrize("how", sorted(SPOILT.keys() - {"invalid UTF-8"}))
async def test_no_live_session_ends_before_one_that_is_not(
    redis: Redis, open_more: Opener, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Though it expires first."""
    caplog.set_level(logging.INFO)
    store = open_more(max_per_user=3)
    live, *spoilt = [await store.create(7, "d", Login(Ventana=100 + i)) for i in range(3)]
    spoil(redis, how, *spoilt)
    made = [await store.create(7, "e", Login(Ventana=200 + i)) for i in range(2)]
    assert exists(redis, live, *spoilt, *made) == [True, False, False, True, True]
    assert index(redis, 7) == indexed(live, *made)
    caplog.clear()
    last = await store.create(7, "f", Login(Ventana=300))
    assert index(redis, 7) == indexed(*made, last)
    assert endings(caplog) == {live.ID_Sesion: "limit"}


async def test_session_that_a_login_replaces_is_not_counted_twice(
    redis: Redis, open_more: Opener
) -> None:
    """Neither when its key is gone, nor when it expires before the one without a key."""
    for at_limit in "end", "refuse":
        redis.flushall()
        store = open_more(at_limit=at_limit, max_per_user=3)
        first, lost, last = [await store.create(7, "d", Login(Ventana=100 + i)) for i in range(3)]
        spoil(redis, "no key", lost)
        login = Login(Token_Anterior=lost.Token_Sesion)
        new = await store.create(7, "e", login)
        assert index(redis, 7) == indexed(first, last, new)
        spoil(redis, "no key", last)
        again = Login(Sustituye=first.ID_Sesion, Max_Sesiones=2)
        newer = await store.create(7, "f", again)
        assert index(redis, 7) == indexed(new, newer)


async def test_login_below_the_limit_reads_no_session(redis: Redis, open_more: Opener) -> None:
    """At the limit it reads at most 100 of them, so that no login of a user with thousands keeps
    Redis busy for long."""
    store = open_more(max_per_user=150)
    for _ in range(148):
        await store.create(7, "d")
    reads = []
    for _ in range(3):
        redis.config_resetstat()
        await store.create(7, "d")
        reads.append(redis.info("commandstats")["cmdstat_hget"]["calls"])
    below, full, at_limit = reads
    assert below == full
    assert 100 <= at_limit - below <= 102
    assert len(index(redis, 7)) == 150


@pytest.mark.parametrize("user", [None, NEIGHBOUR, 8])
async def test_refusal_is_no_event_of_a_session(
    redis: Redis, open_more: Opener, caplog: pytest.LogCaptureFixture, user: int | None
) -> None:
    store = open_more(at_limit="refuse", max_per_user=1)
    await store.create(7, "a")
    previous = None if user is None else (await store.create(user, "b")).Token_Sesion
    caplog.set_level(logging.INFO)
    before = counted(store.metrics)
    with pytest.raises(LimitReached):
        await store.create(7, "c", Login(Token_Anterior=previous))
    assert counted(store.metrics) == before
    assert [record for record in caplog.records if hasattr(record, "event")] == []
