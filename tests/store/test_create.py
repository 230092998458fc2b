"""What create answers and leaves in Redis, and the limit of sessions per user."""

import asyncio

import pytest
from redis import Redis
from redis.crc import key_slot

from sesiones import tokens
from sesiones.sesion import INT_MAX, Login, Sesion, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.records import (
    IDLE,
    NEIGHBOUR,
    base,
    counter_key,
    create_arguments,
    digest,
    index,
    index_key,
    indexed,
    keys,
    lua,
    now,
    session_key,
    state,
)
from tests.harness.stores import Opener

pytestmark = pytest.mark.anyio


async def test_create_writes_the_session_its_index_and_the_counter(
    redis: Redis, store: SessionStore
) -> None:
    before = now(redis)
    sesion = await store.create(7, "portátil de Ana 🔑")
    token = sesion.Token_Sesion
    assert before <= sesion.Fecha_Inicio <= now(redis)
    assert sesion == Sesion(
        ID_Sesion=int(redis.get("sesiones:{eQ}:n") or 0) * 4096 + tokens.bucket_number("eQ"),
        ID_Usuario=7,
        Token_Sesion=token,
        Fecha_Inicio=sesion.Fecha_Inicio,
        Fecha_Expiracion=sesion.Fecha_Inicio + IDLE,
        Estado_Sesion=1,
        Ultima_Actividad=sesion.Fecha_Inicio,
        Dispositivo="portátil de Ana 🔑",
    )
    assert tokens.bucket(token) == "eQ"
    assert state(redis) == {
        f"sesiones:{{eQ}}:h:{digest(token)}": (
            {
                b"1": (
                    f"{sesion.Fecha_Inicio} 0 1800 1 {sesion.ID_Sesion} 7:portátil de Ana 🔑"
                ).encode()
            },
            sesion.Fecha_Expiracion,
        ),
        "sesiones:{eQ}:u:7": (
            [(digest(token).encode(), sesion.Fecha_Expiracion)],
            sesion.Fecha_Expiracion,
        ),
        "sesiones:{eQ}:n": (b"%d" % (sesion.ID_Sesion // 4096), -1),
    }


async def test_id_is_the_counter_of_the_bucket_times_4096_plus_the_bucket(
    redis: Redis, store: SessionStore
) -> None:
    """Users of one bucket share its counter."""
    bucket = tokens.bucket_number("eQ")
    for user in (7, 8):
        redis.set(counter_key(user), 2**40)  # ahead of the time
    made = [(await store.create(user, "d")).ID_Sesion for user in (7, 7, NEIGHBOUR, 8, 7)]
    other = tokens.bucket_number(tokens.user_bucket(8))
    assert made == [
        (2**40 + n) * 4096 + b
        for n, b in [(1, bucket), (2, bucket), (3, bucket), (1, other), (4, bucket)]
    ]
    assert redis.get(counter_key(7)) == b"%d" % (2**40 + 4)


@pytest.mark.parametrize("lost", ["all", "some"])
async def test_no_id_repeats_after_lost_writes(
    redis: Redis, store: SessionStore, lost: str
) -> None:
    """The counter is gone, or back at an earlier number: the next ID does not count from there."""
    ids = []
    for _ in range(10):
        before = redis.get(counter_key(7))
        ids.append((await store.create(7, "d")).ID_Sesion)
        ids.append((await store.create(NEIGHBOUR, "d")).ID_Sesion)
        if lost == "all" or before is None:
            redis.delete(counter_key(7))
        else:
            redis.set(counter_key(7), before)
        await asyncio.sleep(0.01)
    assert ids == sorted(set(ids))


async def test_id_of_an_ended_session_is_not_used_again(redis: Redis, store: SessionStore) -> None:
    first = await store.create(7, "d")
    await store.end_all(first.Token_Sesion, first.Token_Sesion)
    assert (await store.create(7, "d")).ID_Sesion > first.ID_Sesion


async def test_integers_up_to_2_to_the_53_are_exact(redis: Redis, open_more: Opener) -> None:
    """The default number format of Lua rounds from 10^14 on."""
    store = open_more(touch_seconds=60)
    bucket = tokens.user_bucket(INT_MAX)
    redis.set(counter_key(INT_MAX), 2**41 - 2)
    sesion = await store.create(INT_MAX, "d")
    assert sesion.ID_Sesion == (2**41 - 1) * 4096 + tokens.bucket_number(bucket)
    assert sesion.ID_Sesion > 2**53 - 4096
    assert sesion.ID_Usuario == INT_MAX
    assert await store.find(sesion.Token_Sesion) == sesion
    assert await store.update(sesion) == sesion
    assert redis.exists(f"sesiones:{{{bucket}}}:u:9007199254740991")
    assert await store.end_all(sesion.Token_Sesion, "") == 1


def test_second_try_of_a_create_changes_nothing(redis: Redis) -> None:
    """The reply of the first try was lost. The second one ends no other session for the limit,
    either."""
    for number in range(2):
        names = [f"{base(7)}h:{number}", index_key(7), counter_key(7)]
        made = redis.eval(lua("create"), 3, *names, *create_arguments(7, "d", limit=2))
    before = state(redis)
    assert len(before) == 4
    for number in (1, 1, 0):
        names = [f"{base(7)}h:{number}", index_key(7), counter_key(7)]
        again = redis.eval(lua("create"), 3, *names, *create_arguments(7, "d", limit=2))
        assert number == 0 or again == made
    assert state(redis) == before


async def test_every_key_of_a_user_is_in_one_slot(redis: Redis, store: SessionStore) -> None:
    for user in (7, 7, NEIGHBOUR):
        await store.create(user, "d")
    assert len(keys(redis)) == 6
    assert {key_slot(key.encode()) for key in keys(redis)} == {key_slot(b"eQ")}


async def test_stores_of_two_prefixes_do_not_see_each_other(
    open_more: Opener, redis: Redis
) -> None:
    one, other = (open_more(key_prefix=name, touch_seconds=60) for name in ("a.b:c-d_e", "x"))
    sesion = await one.create(7, "d")
    assert {key.partition("{")[0] for key in keys(redis)} == {"a.b:c-d_e:"}
    assert await one.find(sesion.Token_Sesion) == sesion
    assert await other.find(sesion.Token_Sesion) is None


async def test_longest_device_stays_in_a_listpack(redis: Redis, open_more: Opener) -> None:
    store = open_more(touch_seconds=60)
    sesion = await store.create(7, "🔑" * 512)
    assert redis.object("encoding", session_key(sesion.Token_Sesion)) == b"listpack"
    assert await store.find(sesion.Token_Sesion) == sesion


async def test_devices_come_back_as_they_were(open_more: Opener) -> None:
    store = open_more(touch_seconds=60)
    for device in ["ñ", "'; return 1 --", "%.0f %s\\n", '"', "\u2028", "e\u0301", "1", "false"]:
        sesion = await store.create(7, device)
        assert sesion.Dispositivo == device
        assert await store.find(sesion.Token_Sesion) == sesion


async def test_create_beside_a_bad_counter_is_refused_and_writes_nothing(
    redis: Redis, store: SessionStore
) -> None:
    redis.set(counter_key(7), "x")
    with pytest.raises(StoreUnavailable):
        await store.create(7, "d")
    assert keys(redis) == [counter_key(7)]


@pytest.mark.parametrize("login", [Login(), Login(Ventana=60), Login(Token_Anterior="")], ids=str)
async def test_session_without_a_life_of_its_own_has_the_field_1_alone(
    redis: Redis, store: SessionStore, login: Login
) -> None:
    """So its memory is that of a session before sessions had a life of their own. The memory itself
    is not compared: an allocator may give equal keys blocks of different sizes."""
    sesion = await store.create(7, "d" * 20, login)
    key = session_key(sesion.Token_Sesion)
    assert redis.hkeys(key) == [b"1"]
    assert redis.object("encoding", key) == b"listpack"


# The limit.


async def test_limit_ends_the_session_that_expires_first(open_more: Opener, redis: Redis) -> None:
    """That need not be the oldest one, nor the one that is used least."""
    store = open_more(max_per_user=3)
    made = [await store.create(7, name) for name in ("uno", "dos", "tres")]
    neighbour = await store.create(NEIGHBOUR, "ajena")
    second = await store.update(made[1]._replace(Fecha_Expiracion=made[1].Fecha_Inicio + 60))
    new = await store.create(7, "cuatro")
    assert await store.find(made[1].Token_Sesion) is None
    assert isinstance(second, Sesion)
    assert not redis.exists(session_key(second.Token_Sesion))
    assert index(redis, 7) == indexed(made[0], made[2], new)
    assert await store.find(neighbour.Token_Sesion) is not None


async def test_inactive_sessions_count_for_the_limit(open_more: Opener, redis: Redis) -> None:
    store = open_more(max_per_user=1)
    inactive = await store.create(7, "uno")
    await store.update(inactive._replace(Estado_Sesion=0))
    await store.create(7, "dos")
    assert await store.update(inactive) is None


async def test_lowered_limit_ends_thousands_at_the_next_create(
    open_more: Opener, redis: Redis
) -> None:
    """There are far more of them than unpack() in Lua could take."""
    store = open_more(max_per_user=10_000)
    first = await store.create(7, "primera")
    expiry = first.Fecha_Expiracion
    many = {f"{i:022}": expiry - 1 for i in range(9_000)}
    redis.zadd(index_key(7), many)
    with redis.pipeline(transaction=False) as pipeline:
        for name in many:
            pipeline.hset(f"{base(7)}h:{name}", "1", "1 1 1 1 1 7:d")
            pipeline.expireat(f"{base(7)}h:{name}", expiry - 1)
        pipeline.execute()
    lower = open_more(max_per_user=2)
    new = await lower.create(7, "nueva")
    assert index(redis, 7) == indexed(first, new)
    assert len(redis.keys("*:h:*")) == 2
