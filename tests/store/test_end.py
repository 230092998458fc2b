"""What end and end_all answer and leave in Redis."""

import pytest
from redis import Redis

from sesiones.sesion import Refusal
from sesiones.store import SessionStore
from tests.harness.records import (
    IDLE,
    NEIGHBOUR,
    age,
    base,
    counter_key,
    digest,
    index,
    index_key,
    indexed,
    keys,
    session_key,
    state,
)
from tests.harness.stores import Opener

pytestmark = pytest.mark.anyio


async def test_end_of_the_callers_own_session_ends_it(redis: Redis, store: SessionStore) -> None:
    token = (await store.create(7, "d")).Token_Sesion
    assert await store.end(token, token) == 1
    assert await store.find(token) is None
    assert keys(redis) == ["sesiones:{eQ}:n"]
    assert await store.end(token, token) is Refusal.UNAUTHENTICATED


async def test_end_another_session_of_the_user(redis: Redis, store: SessionStore) -> None:
    mine, theirs = await store.create(7, "a"), await store.create(7, "b")
    assert await store.end(mine.Token_Sesion, theirs.Token_Sesion) == 1
    assert await store.end(mine.Token_Sesion, theirs.Token_Sesion) == 0
    assert index(redis, 7) == indexed(mine)
    assert not redis.exists(session_key(theirs.Token_Sesion))


async def test_end_an_inactive_session(redis: Redis, store: SessionStore) -> None:
    mine, theirs = await store.create(7, "a"), await store.create(7, "b")
    await store.update(theirs._replace(Estado_Sesion=0))
    assert await store.end(mine.Token_Sesion, theirs.Token_Sesion) == 1
    assert index(redis, 7) == indexed(mine)


@pytest.mark.parametrize("user", [NEIGHBOUR, 8], ids=["same bucket", "other bucket"])
async def test_end_of_another_users_session_is_forbidden(
    redis: Redis, store: SessionStore, user: int
) -> None:
    """Whether it is active or not, and without a use of it."""
    mine, theirs = await store.create(7, "a"), await store.create(user, "b")
    theirs = age(redis, theirs, 100)
    for Estado_Sesion in (1, 0):
        await store.update(theirs._replace(Estado_Sesion=Estado_Sesion))
        before = state(redis)
        for end in (store.end, store.end_all):
            assert await end(mine.Token_Sesion, theirs.Token_Sesion) is Refusal.FORBIDDEN
        assert state(redis) == before


@pytest.mark.parametrize(
    "designated",
    [
        "",
        "no token",
        "*",
        "ñ" * 49,
        "ses_eQpVOX1CvLlO0qt-iWCE2zk9cieXg0IwoD3_qGn7i1el8",
        "ses_LGDosh2Qik--oL0iS1l2sjfPLDl29QvvbLJDnLggL0sAU",
    ],
)
async def test_end_of_no_live_session_counts_none(
    redis: Redis, store: SessionStore, designated: str
) -> None:
    token = (await store.create(7, "d")).Token_Sesion
    before = state(redis)
    assert await store.end(token, designated) == 0
    assert state(redis) == before
    assert await store.end_all(token, designated) == 1


async def test_inactive_caller_is_unauthenticated(redis: Redis, store: SessionStore) -> None:
    mine, theirs = await store.create(7, "a"), await store.create(7, "b")
    await store.update(mine._replace(Estado_Sesion=0))
    before = state(redis)
    for designated in (mine, theirs):
        for end in (store.end, store.end_all):
            ended = await end(mine.Token_Sesion, designated.Token_Sesion)
            assert ended is Refusal.UNAUTHENTICATED
    assert state(redis) == before


async def test_end_all_ends_every_live_session_of_the_user_alone(
    redis: Redis, store: SessionStore
) -> None:
    """Inactive sessions end, too."""
    made = [await store.create(7, str(i)) for i in range(5)]
    neighbour = await store.create(NEIGHBOUR, "ajena")
    await store.update(made[1]._replace(Estado_Sesion=0))
    age(redis, made[2], IDLE + 1)
    caller = made[0].Token_Sesion
    assert await store.end_all(caller, made[3].Token_Sesion) == 4
    assert state(redis).keys() == {
        session_key(neighbour.Token_Sesion),
        index_key(NEIGHBOUR),
        counter_key(7),
    }
    assert await store.end_all(caller, caller) is Refusal.UNAUTHENTICATED


async def test_end_all_ends_a_caller_that_its_index_has_lost(
    redis: Redis, store: SessionStore
) -> None:
    """A session that its index has lost must not outlive a logout of its own."""
    mine, _ = await store.create(7, "a"), await store.create(7, "b")
    redis.zrem(index_key(7), digest(mine.Token_Sesion))
    assert await store.end_all(mine.Token_Sesion, mine.Token_Sesion) == 2
    assert keys(redis) == ["sesiones:{eQ}:n"]


async def test_end_all_ends_more_sessions_than_lua_can_unpack(
    open_more: Opener, redis: Redis
) -> None:
    store = open_more(max_per_user=10_000)
    sesion = await store.create(7, "d")
    many = {f"{i:022}": sesion.Fecha_Expiracion for i in range(9_000)}
    redis.zadd(index_key(7), many)
    with redis.pipeline(transaction=False) as pipeline:
        for name in many:
            pipeline.set(f"{base(7)}h:{name}", 1, exat=sesion.Fecha_Expiracion)
        pipeline.execute()
    assert await store.end_all(sesion.Token_Sesion, "") == 9_001
    assert keys(redis) == ["sesiones:{eQ}:n"]
