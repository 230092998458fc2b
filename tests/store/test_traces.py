"""The traces of sessions that are gone, where SESIONES_WHY_SECONDS keeps them: what each says, that
nothing takes it for a session, and that no operation depends on it."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis import Redis

from sesiones import tokens
from sesiones.sesion import Login, Refusal, Sesion, StoreUnavailable
from sesiones.store import SessionStore
from sesiones.store.operators import Ending
from sesiones.store.traces import Trace
from tests.harness.records import base, digest, index_key, session_key
from tests.harness.redis_server import RedisServer
from tests.harness.stores import Opener, available

pytestmark = pytest.mark.anyio

KEEP_SECONDS = 600
TRACES = f"{base(7)}w"
CALLER = "session {0.ID_Sesion}, ses_#{1}"


@pytest.fixture
def store(open_more: Opener) -> SessionStore:
    return open_more(why_seconds=KEEP_SECONDS, touch_seconds=0)


async def gone(store: SessionStore, whose: int | str = 7) -> list[Trace]:
    return (await store.operators().why(whose))[1]


End = Callable[[SessionStore, Sesion, Sesion], Awaitable[object]]
ENDINGS: dict[str, tuple[End, str]] = {
    "logout": (lambda store, by, ended: store.end(by.Token_Sesion, ended.Token_Sesion), CALLER),
    "logout_all": (lambda store, by, _: store.end_all(by.Token_Sesion, by.Token_Sesion), CALLER),
    "others": (lambda store, by, _: store.end_others(by.Token_Sesion), CALLER),
    "id": (lambda store, by, ended: store.end_one(by.Token_Sesion, ended.ID_Sesion), CALLER),
    "operator": (lambda store, _, ended: store.end_user(7, ended.ID_Sesion), "SessionStore"),
    "revocation": (lambda store, _, ended: store.revoke(ended.Token_Sesion), "SessionStore"),
    "replaced": (
        lambda store, _, ended: store.create(7, "d", Login(Sustituye=ended.ID_Sesion)),
        "SessionStore",
    ),
    "foreign": (
        lambda store, _, ended: store.create(8, "d", Login(Token_Anterior=ended.Token_Sesion)),
        "SessionStore",
    ),
    "closing": (lambda store, *_: store.create(7, "d", Login(Cerrar_Otras=1)), "SessionStore"),
    "limit": (lambda store, *_: store.create(7, "d", Login(Max_Sesiones=1)), "SessionStore"),
}
REASONS = {"revocation": "logout", "foreign": "replaced", "closing": "others"}


async def is_gone(redis: Redis, key: str) -> None:
    if redis.exists(key):
        raise StoreUnavailable("not yet")


@pytest.mark.parametrize("how", ENDINGS)
async def test_ending_leaves_a_trace_and_a_line_that_say_who_did_it(
    store: SessionStore, redis: Redis, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    ended, by = await store.create(7, "laptop"), await store.create(7, "phone")
    end, actor = ENDINGS[how]
    caplog.set_level("INFO")
    await end(store, by, ended)
    actor = actor.format(by, tokens.fingerprint(by.Token_Sesion))
    live, traces = await store.operators().why(ended.Token_Sesion)
    (trace,) = traces
    assert live == []
    assert trace == Trace(
        fingerprint=tokens.fingerprint(ended.Token_Sesion),
        when=trace.when,
        reason=REASONS.get(how, how),
        ID_Sesion=ended.ID_Sesion,
        ID_Usuario=7,
        Ultima_Actividad=ended.Ultima_Actividad,
        actor=actor,
    )
    assert 0 <= trace.when - ended.Fecha_Inicio < 60
    name = f"ended session {ended.ID_Sesion} of user 7, ses_#{trace.fingerprint}"
    assert f"{name}: {trace.reason} by {actor}" in caplog.messages
    assert trace in await gone(store)
    assert await gone(store, trace.fingerprint) == [trace]


async def test_ending_of_every_session_leaves_a_trace_of_each(
    store: SessionStore, redis: Redis
) -> None:
    made = [await store.create(user, "laptop") for user in (7, 7, 8)]
    async for _ in store.operators().end_begun(None, Ending()):
        pass
    for sesion in made:
        (trace,) = await gone(store, sesion.Token_Sesion)
        known = trace.ID_Sesion, trace.reason, trace.actor
        assert known == (sesion.ID_Sesion, "operator", "SessionStore")


async def test_ending_that_nothing_asked_for_has_no_actor(
    store: SessionStore, redis: Redis
) -> None:
    lost = await store.create(7, "laptop")
    redis.delete(index_key(7))
    assert await store.find(lost.Token_Sesion) is None
    (trace,) = await gone(store)
    assert (trace.reason, trace.ID_Sesion, trace.actor) == ("unindexed", lost.ID_Sesion, "")


async def test_session_that_was_back_after_a_failover_has_two_traces(
    store: SessionStore, redis: Redis
) -> None:
    sesion = await store.create(7, "laptop")
    key = session_key(sesion.Token_Sesion)
    kept: Any = redis.dump(key)
    await store.revoke(sesion.Token_Sesion)
    redis.restore(key, 1_000_000, kept)
    store._loops.get().replay.owner_changed(tokens.BUCKETS)
    await available(lambda: is_gone(redis, key))
    traces = await gone(store, sesion.Token_Sesion)
    assert {(trace.reason, trace.actor) for trace in traces} == {
        ("logout", "SessionStore"),
        ("failover", ""),
    }


async def test_trace_is_no_session(store: SessionStore, redis: Redis) -> None:
    one, two = await store.create(7, "laptop"), await store.create(7, "phone")
    assert await store.end(two.Token_Sesion, one.Token_Sesion) == 1
    assert await store.find(one.Token_Sesion) is None
    assert await store.update(one) is None
    assert [each.ID_Sesion for each in await store.sessions(7, deep=True)] == [two.ID_Sesion]
    assert await store.end(two.Token_Sesion, one.Token_Sesion) == 0
    assert await store.end_user(7, one.ID_Sesion) == 0
    assert [found async for _, faults in store.operators().audit() for found in faults] == []
    assert len(await gone(store)) == 1
    assert not redis.exists(session_key(one.Token_Sesion))


async def test_logout_that_is_tried_again_leaves_one_trace(store: SessionStore) -> None:
    one = await store.create(7, "laptop")
    assert await store.end(one.Token_Sesion, one.Token_Sesion) == 1
    assert await store.end(one.Token_Sesion, one.Token_Sesion) is Refusal.UNAUTHENTICATED
    assert len(await gone(store)) == 1


async def test_live_session_is_known_beside_its_traces(store: SessionStore, redis: Redis) -> None:
    """A second try of a login makes a session anew that has ended meanwhile."""
    token = tokens.make(7)
    await store._create(7, "laptop", token)
    await store.revoke(token)
    again = await store._create(7, "laptop", token)
    (live,), (trace,) = await store.operators().why(token)
    assert live.ID_Sesion == again.ID_Sesion != trace.ID_Sesion


async def test_without_the_setting_no_key_is_left(redis: Redis, open_more: Opener) -> None:
    store = open_more()
    one = await store.create(7, "laptop")
    latest = redis.zscore(index_key(7), digest(one.Token_Sesion))
    assert redis.expiretime(index_key(7)) == latest == one.Fecha_Expiracion
    assert await store.end_all(one.Token_Sesion, one.Token_Sesion) == 1
    assert redis.keys("*") == [f"{base(7)}n".encode()]
    assert (
        await store.operators().why(7) == await store.operators().why(one.Token_Sesion) == ([], [])
    )


async def test_traces_expire(store: SessionStore, redis: Redis) -> None:
    """Those of a bucket together, and each with the next that comes."""
    now = int(redis.time()[0])
    old = f"{'A' * 22} logout 7 1 1 SessionStore"
    redis.zadd(TRACES, {old: now - KEEP_SECONDS - 1})
    await store.revoke((await store.create(7, "laptop")).Token_Sesion)
    assert redis.zscore(TRACES, old) is None
    assert KEEP_SECONDS - 60 < redis.ttl(TRACES) <= KEEP_SECONDS


async def test_bucket_keeps_a_bounded_number_of_traces(store: SessionStore, redis: Redis) -> None:
    now = int(redis.time()[0])
    redis.zadd(TRACES, {f"{n:022} logout 9 {n} {n} x": now - 60 + n / 1e6 for n in range(10_000)})
    one, two = await store.create(7, "laptop"), await store.create(7, "laptop")
    assert await store.end_all(one.Token_Sesion, one.Token_Sesion) == 2
    assert redis.zcard(TRACES) == 10_000
    assert {trace.ID_Sesion for trace in await gone(store)} == {one.ID_Sesion, two.ID_Sesion}
    assert redis.zscore(TRACES, f"{1:022} logout 9 1 1 x") is None
    assert redis.zscore(TRACES, f"{2:022} logout 9 2 2 x") is not None


async def test_logout_all_leaves_a_trace_of_each(store: SessionStore, redis: Redis) -> None:
    """More than one ZADD takes."""
    made = [await store.create(7, "laptop") for _ in range(250)]
    assert await store.end_all(made[0].Token_Sesion, "") == 250
    assert {trace.ID_Sesion for trace in await gone(store)} == {each.ID_Sesion for each in made}


@pytest.mark.parametrize("how", ["logout", "logout_all", "others", "id", "operator", "limit"])
async def test_ending_works_where_no_trace_can_be_written(
    store: SessionStore, redis: Redis, how: str
) -> None:
    ended, by = await store.create(7, "laptop"), await store.create(7, "phone")
    redis.set(TRACES, "another type")
    await ENDINGS[how][0](store, by, ended)
    assert await store.find(ended.Token_Sesion) is None
    assert redis.get(TRACES) == b"another type"
    assert await gone(store) == []


async def test_full_memory_takes_traces_which_are_smaller_than_sessions(
    own_server: RedisServer, open_more: Opener
) -> None:
    store = open_more(own_server.url, why_seconds=KEEP_SECONDS)
    made = [await store.create(7, "laptop") for _ in range(400)]
    with own_server.client() as redis:
        keys = [index_key(7), *(session_key(sesion.Token_Sesion) for sesion in made)]
        sessions = sum(redis.memory_usage(key, samples=0) for key in keys)
        redis.config_set("maxmemory", 1)
        assert await store.end(made[0].Token_Sesion, made[1].Token_Sesion) == 1
        assert await store.end_all(made[0].Token_Sesion, "") == 399
        assert len(await gone(store)) == 400
        assert redis.memory_usage(TRACES, samples=0) < sessions


@pytest.mark.parametrize(
    ("key", "member", "score"),
    [
        (TRACES, f"{'A' * 22} logout 7 1 1 x", "-inf"),
        (TRACES, f"{'A' * 22} logout 7 1 1 x", "inf"),
        (TRACES, f"{'A' * 22} logout 7 1", 1),
        (TRACES, b"%b logout 7 1 1 \xff" % (b"A" * 22), 1),
        (TRACES, "é logout 7 1 1 x", 1),
        (index_key(7), "A", 1),
        (index_key(7), "a digest with blanks", 1),
        (index_key(7), b"\xff" * 22, 1),
        (index_key(7), "A" * 22, "-inf"),
    ],
)
async def test_malformed_trace_hides_no_other(
    store: SessionStore, redis: Redis, key: str, member: Any, score: float | str
) -> None:
    gone_one, live_one = await store.create(7, "laptop"), await store.create(7, "phone")
    await store.revoke(gone_one.Token_Sesion)
    redis.zadd(key, {member: score})
    live, traces = await store.operators().why(7)
    assert [session.ID_Sesion for session in live] == [live_one.ID_Sesion]
    assert [trace.ID_Sesion for trace in traces] == [gone_one.ID_Sesion]


async def test_search_asks_for_the_traces_of_one_bucket_at_a_time(
    store: SessionStore, redis: Redis
) -> None:
    """Redis serves checks between two of those calls."""
    users = range(100, 130)
    for user in users:
        await store.revoke((await store.create(user, "laptop")).Token_Sesion)
    buckets = len({base(user) for user in users})
    made = await store.create(7, "laptop")
    await store.revoke(made.Token_Sesion)
    redis.config_resetstat()
    (trace,) = await gone(store, tokens.fingerprint(made.Token_Sesion))
    assert trace.ID_Sesion == made.ID_Sesion
    assert redis.info("commandstats")["cmdstat_eval"]["calls"] > buckets
