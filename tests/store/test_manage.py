"""Lists of a user's sessions, and the operations that end them by number, all but one, or by a
token that nothing accompanies."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis import Redis

from sesiones import tokens
from sesiones.sesion import INT_MAX, Login, Refusal, Sesion, StoreUnavailable, UserSession
from sesiones.store import SessionStore
from tests.harness.faults import Fault, cut_off, full, misconf, noreplicas
from tests.harness.metrics import counted
from tests.harness.records import (
    NEIGHBOUR,
    age,
    counter_key,
    index,
    index_key,
    indexed,
    keys,
    session_key,
    state,
    write_record,
)
from tests.harness.redis_server import RedisServer
from tests.harness.stores import Opener, open_store
from tests.store.ended import exists

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(open_more: Opener) -> SessionStore:
    """Checks slide no session that was used within the last minute, so that a session stays what
    create() has returned, on a slow machine too."""
    return open_more(touch_seconds=60)


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    ended = [record for record in caplog.records if getattr(record, "event", "") == "ended"]
    return sorted(record.reason for record in ended)  # type: ignore[attr-defined]


async def inactive(store: SessionStore, sesion: Sesion) -> Sesion:
    assert await store.update(sesion._replace(Estado_Sesion=0)) is not None
    return sesion._replace(Estado_Sesion=0)


def listed(sesion: Sesion, Actual: bool | None = None) -> UserSession:
    fields = sesion._asdict()
    fingerprint = tokens.fingerprint(fields.pop("Token_Sesion"))
    return UserSession(**fields, fingerprint=fingerprint, Actual=Actual)


# Lists.


async def test_list_has_every_live_session_the_most_recently_used_first(
    redis: Redis, store: SessionStore
) -> None:
    """Then the newest. Active or not; and no other user's."""
    made = [await store.create(7, name) for name in "abcd"]
    await store.create(NEIGHBOUR, "e")
    await store.create(8, "f")
    old = age(redis, made[0], 30)
    older = age(redis, await inactive(store, made[2]), 50)
    key = session_key(made[3].Token_Sesion)
    write_record(redis, key, inicio=made[1].Fecha_Inicio)
    last = made[3]._replace(
        Fecha_Inicio=made[1].Fecha_Inicio, Ultima_Actividad=made[1].Fecha_Inicio
    )
    expected = [last, made[1], old, older]
    assert await store.sessions(7) == [listed(sesion) for sesion in expected]
    own = await store.list_sessions(old.Token_Sesion)
    assert own == [listed(sesion, sesion is old) for sesion in expected]


async def test_list_is_complete_at_the_limit(store: SessionStore) -> None:
    made = [await store.create(7, f"d{i}") for i in range(1000)]
    own = await store.list_sessions(made[0].Token_Sesion)
    assert own is not None
    assert {each.ID_Sesion for each in own} == {sesion.ID_Sesion for sesion in made}
    assert [each.ID_Sesion for each in own if each.Actual] == [made[0].ID_Sesion]
    order = [(each.Ultima_Actividad, each.ID_Sesion) for each in own]
    assert order == sorted(order, reverse=True)


async def test_list_shows_neither_tokens_nor_digests(store: SessionStore) -> None:
    made = await store.create(7, "laptop")
    (each,) = await store.list_sessions(made.Token_Sesion) or []
    assert list(each.to_dict().items()) == [
        ("ID_Sesion", made.ID_Sesion),
        ("Fecha_Inicio", made.Fecha_Inicio),
        ("Fecha_Expiracion", made.Fecha_Expiracion),
        ("Estado_Sesion", 1),
        ("Ultima_Actividad", made.Ultima_Actividad),
        ("Dispositivo", "laptop"),
        ("Actual", True),
    ]
    (each,) = await store.sessions(7)
    assert "Actual" not in each.to_dict()
    assert tokens.digest(made.Token_Sesion) not in repr(each)


async def test_list_of_a_user_without_sessions_is_empty_and_writes_nothing(
    redis: Redis, store: SessionStore
) -> None:
    assert await store.sessions(7) == []
    assert state(redis) == {}


async def test_list_leaves_out_dead_sessions(redis: Redis, store: SessionStore) -> None:
    live, dead = [await store.create(7, name) for name in "ab"]
    redis.expireat(session_key(dead.Token_Sesion), dead.Fecha_Inicio - 1)
    assert await store.sessions(7) == [listed(live)]


async def test_list_leaves_out_bad_records(
    redis: Redis, store: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is a logged error, and costs no other session its place."""
    live, *bad = [await store.create(7, name) for name in "abcde"]
    redis.hset(session_key(bad[0].Token_Sesion), "1", "x")
    redis.set(session_key(bad[1].Token_Sesion), "x", ex=100)
    redis.persist(session_key(bad[2].Token_Sesion))
    redis.hdel(session_key(bad[3].Token_Sesion), "1")
    redis.hset(session_key(bad[3].Token_Sesion), "otro", "x")
    assert await store.sessions(7) == [listed(live)]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 4
    for sesion, text in zip(bad, sorted(caplog.messages, key=str), strict=False):
        assert sesion.Token_Sesion[6:] not in text


async def test_list_beside_an_index_of_another_type_is_empty(
    redis: Redis, store: SessionStore
) -> None:
    await store.create(7, "a")
    redis.set(index_key(7), "x", ex=100)
    assert await store.sessions(7) == []


# Who may.


CALLS: dict[str, Callable[[SessionStore, str], Awaitable[Any]]] = {
    "list": lambda store, token: store.list_sessions(token),
    "end_others": lambda store, token: store.end_others(token),
    "end_one": lambda store, token: store.end_one(token, 1),
}


@pytest.mark.parametrize("call", CALLS)
async def test_caller_without_a_live_and_active_session_is_refused(
    redis: Redis, store: SessionStore, call: str
) -> None:
    gone, sleeping, other = [await store.create(7, name) for name in "abc"]
    assert await store.end(gone.Token_Sesion, gone.Token_Sesion) == 1
    await inactive(store, sleeping)
    before = state(redis)
    refusal = None if call == "list" else Refusal.UNAUTHENTICATED
    for token in gone.Token_Sesion, sleeping.Token_Sesion, tokens.make(7), "", "ses_", "ñ" * 49:
        assert await CALLS[call](store, token) is refusal
    assert state(redis) == before
    assert exists(redis, other) == [True]


@pytest.mark.parametrize("call", CALLS)
async def test_call_of_the_owner_is_a_use_of_the_session(
    redis: Redis, store: SessionStore, call: str
) -> None:
    caller = age(redis, await store.create(7, "a"), 100)
    await CALLS[call](store, caller.Token_Sesion)
    (each,) = await store.sessions(7)
    assert each.Ultima_Actividad >= caller.Ultima_Actividad + 100
    assert each.Fecha_Expiracion >= caller.Fecha_Expiracion + 100


# Endings.


async def test_end_one_ends_a_session_of_the_user_by_its_number(
    redis: Redis, store: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    """An inactive one too, and the caller's own."""
    caplog.set_level(logging.INFO)
    mine, one, two, kept = [await store.create(7, name) for name in "abcd"]
    await inactive(store, two)
    for sesion in one, two:
        assert await store.end_one(mine.Token_Sesion, sesion.ID_Sesion) == 1
        assert await store.end_one(mine.Token_Sesion, sesion.ID_Sesion) == 0
    assert index(redis, 7) == indexed(mine, kept)
    assert await store.end_one(mine.Token_Sesion, mine.ID_Sesion) == 1
    assert await store.end_one(mine.Token_Sesion, kept.ID_Sesion) is Refusal.UNAUTHENTICATED
    assert exists(redis, mine, one, two, kept) == [False, False, False, True]
    assert reasons(caplog) == ["id"] * 3


async def test_end_one_tells_nothing_of_another_users_session(
    redis: Redis, store: SessionStore
) -> None:
    """The answer is the same as for a number of no session."""
    mine = await store.create(7, "a")
    others = [await store.create(user, "b") for user in (NEIGHBOUR, 8)]
    for number in 1, INT_MAX, *(sesion.ID_Sesion for sesion in others):
        assert await store.end_one(mine.Token_Sesion, number) == 0
    assert exists(redis, mine, *others) == [True] * 3


@pytest.mark.parametrize("number", [0, -1, INT_MAX + 1, True, 1.0, "1", None])
async def test_end_one_of_an_invalid_number_raises(store: SessionStore, number: Any) -> None:
    mine = await store.create(7, "a")
    with pytest.raises((TypeError, ValueError)):
        await store.end_one(mine.Token_Sesion, number)


async def test_end_others_keeps_the_caller_alone(
    redis: Redis, store: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mine, one, two = [await store.create(7, name) for name in "abc"]
    await inactive(store, two)
    neighbour = await store.create(NEIGHBOUR, "d")
    assert await store.end_others(mine.Token_Sesion) == 2
    assert exists(redis, mine, one, two, neighbour) == [True, False, False, True]
    assert index(redis, 7) == indexed(mine)
    assert redis.expiretime(index_key(7)) == mine.Fecha_Expiracion
    assert reasons(caplog) == ["others"] * 2
    assert counted(store.metrics)["sesiones_sessions_ended_total['others']"] == 2
    assert await store.end_others(mine.Token_Sesion) == 0
    assert await store.find(mine.Token_Sesion) == mine
    assert await store.find(one.Token_Sesion) is None


async def test_end_others_keeps_the_callers_own_life(redis: Redis, store: SessionStore) -> None:
    mine = await store.create(7, "a", Login(Vida_Maxima=600))
    await store.create(7, "b")
    assert await store.end_others(mine.Token_Sesion) == 1
    assert redis.hget(session_key(mine.Token_Sesion), "2") == b"600"
    assert index(redis, 7) == indexed(mine)


async def test_end_others_ends_bad_records_and_counts_no_dead_session(
    redis: Redis, store: SessionStore
) -> None:
    mine, bad, dead, live = [await store.create(7, name) for name in "abcd"]
    redis.hset(session_key(bad.Token_Sesion), "1", "x")
    redis.zadd(index_key(7), {session_key(dead.Token_Sesion)[-22:]: dead.Fecha_Inicio - 1})
    assert await store.end_others(mine.Token_Sesion) == 2
    assert exists(redis, mine, bad, dead, live) == [True, False, False, False]
    assert index(redis, 7) == indexed(mine)


async def test_end_user_ends_one_or_all(
    redis: Redis, store: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one, two, three = [await store.create(7, name) for name in "abc"]
    await inactive(store, two)
    neighbour = await store.create(NEIGHBOUR, "d")
    assert await store.end_user(7, neighbour.ID_Sesion) == 0
    assert await store.end_user(7, one.ID_Sesion) == 1
    assert exists(redis, one, two, three) == [False, True, True]
    assert await store.end_user(7) == 2
    assert await store.end_user(7) == 0
    assert keys(redis) != []
    assert exists(redis, one, two, three, neighbour) == [False, False, False, True]
    assert not redis.exists(index_key(7))
    assert reasons(caplog) == ["operator"] * 3


async def test_revoke_ends_a_session_active_or_not(
    redis: Redis, store: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one, two, kept = [await store.create(7, name) for name in "abc"]
    await inactive(store, two)
    for sesion in one, two, one:
        assert await store.revoke(sesion.Token_Sesion) is None  # type: ignore[func-returns-value]
    assert exists(redis, one, two, kept) == [False, False, True]
    assert index(redis, 7) == indexed(kept)
    assert reasons(caplog) == ["logout"] * 2


@pytest.mark.parametrize("token", ["", "x", "ses_", "*", "ñ" * 49, "ses_eQ" + "A" * 43])
async def test_revoke_of_no_session_changes_nothing(
    redis: Redis, store: SessionStore, token: str
) -> None:
    await store.revoke(token)
    assert state(redis) == {}
    await store.create(7, "a")
    before = state(redis)
    await store.revoke(token)
    assert state(redis) == before


async def test_revoke_of_a_dead_session_changes_nothing(redis: Redis, store: SessionStore) -> None:
    sesion = await store.create(7, "a")
    redis.delete(session_key(sesion.Token_Sesion))
    before = state(redis)
    await store.revoke(sesion.Token_Sesion)
    assert state(redis) == before
    assert counted(store.metrics).get("sesiones_sessions_ended_total['logout']") is None


async def test_revoke_leaves_a_bad_counter_alone(redis: Redis, store: SessionStore) -> None:
    sesion = await store.create(7, "a")
    redis.set(counter_key(7), "x")
    await store.revoke(sesion.Token_Sesion)
    assert exists(redis, sesion) == [False]


@pytest.mark.parametrize("call", ["end_one", "end_others", "end_user", "revoke"])
async def test_session_ends_beside_an_index_of_another_type(
    redis: Redis, store: SessionStore, call: str
) -> None:
    """Only by its token: no index names it. Nothing is raised but that Redis refuses."""
    mine = await store.create(7, "a")
    redis.set(index_key(7), "x", ex=100)
    match call:
        case "end_one":
            ended = await store.end_one(mine.Token_Sesion, mine.ID_Sesion)
            assert ended is Refusal.UNAUTHENTICATED
        case "end_user":
            assert await store.end_user(7) == 0
        case "end_others":
            with pytest.raises(StoreUnavailable):
                await store.end_others(mine.Token_Sesion)
        case "revoke":
            await store.revoke(mine.Token_Sesion)
            assert exists(redis, mine) == [False]


# Redis fails.


@pytest.mark.parametrize("fault", [full])
async def test_sessions_are_listed_and_ended_while_redis_is_full(
    own_server: RedisServer, fault: Fault
) -> None:
    async with open_store(own_server.url, touch_seconds=0) as store:
        mine, *others = [await store.create(7, name) for name in "abcdef"]
        with fault(own_server), own_server.client() as redis:
            redis.script_flush()  # the scripts load again
            assert len(await store.list_sessions(mine.Token_Sesion) or []) == 6
            assert await store.end_one(mine.Token_Sesion, others[0].ID_Sesion) == 1
            await store.revoke(others[1].Token_Sesion)
            assert await store.end_user(7, others[2].ID_Sesion) == 1
            assert await store.end_others(mine.Token_Sesion) == 2
            assert [each.ID_Sesion for each in await store.sessions(7)] == [mine.ID_Sesion]
            assert await store.end_user(7) == 1


@pytest.mark.parametrize("fault", [misconf, noreplicas])
async def test_sessions_are_listed_and_not_ended_while_redis_refuses_writes(
    own_server: RedisServer, fault: Fault
) -> None:
    async with open_store(own_server.url) as store:
        mine, other = [await store.create(7, name) for name in "ab"]
        endings: list[Callable[[], Awaitable[Any]]] = [
            lambda: store.end_one(mine.Token_Sesion, other.ID_Sesion),
            lambda: store.end_others(mine.Token_Sesion),
            lambda: store.end_user(7),
            lambda: store.revoke(other.Token_Sesion),
        ]
        with fault(own_server):
            assert len(await store.list_sessions(mine.Token_Sesion) or []) == 2
            assert len(await store.sessions(7)) == 2
            for end in endings:
                with pytest.raises(StoreUnavailable):
                    await end()
        assert len(await store.sessions(7)) == 2


async def test_replica_neither_lists_nor_ends_sessions(own_server: RedisServer) -> None:
    """A demoted master may not know of the last logouts."""
    async with open_store(own_server.url, timeout_seconds=1) as store:
        mine = await store.create(7, "a")
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: store.sessions(7),
            lambda: store.list_sessions(mine.Token_Sesion),
            lambda: store.end_one(mine.Token_Sesion, mine.ID_Sesion),
            lambda: store.end_others(mine.Token_Sesion),
            lambda: store.end_user(7),
            lambda: store.revoke(mine.Token_Sesion),
        ]
        with cut_off(own_server):
            for call in calls:
                with pytest.raises(StoreUnavailable):
                    await call()
        assert len(await store.sessions(7)) == 1


# The audit.


@pytest.mark.parametrize("life", ["", "x", "0", "-1", "inf", "1.5", "9" * 20])
async def test_audit_names_a_malformed_life_and_no_other(
    redis: Redis, store: SessionStore, life: str
) -> None:
    await store.create(7, "a", Login(Vida_Maxima=600))
    await store.create(7, "b")
    faults = [fault async for _, found in store.operators().audit() for fault in found]
    assert faults == []
    bad = session_key((await store.create(7, "c", Login(Vida_Maxima=60))).Token_Sesion)
    redis.hset(bad, "2", life)
    faults = [fault async for _, found in store.operators().audit() for fault in found]
    assert faults == [(bad, "the field 2 is not a life in seconds")]
