"""Time, to the second: the store on fakeredis with a clock that only the test moves."""

import pytest
from redis import Redis

from sesiones.sesion import INT_MAX, BadDates, Refusal
from sesiones.store import SessionStore
from sesiones.testing import START, Clock
from tests.harness.records import (
    IDLE,
    MAX,
    NEIGHBOUR,
    digest,
    index,
    index_key,
    indexed,
    keys,
    record,
    session_key,
)
from tests.harness.stores import Opener
from tests.store.clock.dates import with_dates

pytestmark = pytest.mark.anyio


def sessions(redis: Redis) -> list[str]:
    """The session keys that exist, whether their sessions live or not."""
    return [key for key in keys(redis) if "}:h:" in key]


async def test_fakeredis_follows_the_clock(clock: Clock, redis: Redis) -> None:
    """Otherwise the tests below would pass for the wrong reason."""
    redis.set("key", 1, ex=10)
    script = "return {redis.call('TIME')[1], redis.call('EXPIRETIME', 'key')}"
    assert redis.eval(script, 0) == [b"%d" % START, START + 10]
    clock.now += 10
    # Redis drops a key after the millisecond of its expiry, not before.
    assert redis.eval(script, 0) == [b"%d" % (START + 10), START + 10]
    clock.now += 0.001
    assert redis.eval(script, 0) == [b"%d" % (START + 10), -2]


async def test_session_lives_to_the_second_before_its_expiry(
    clock: Clock, store: SessionStore
) -> None:
    sesion = await store.create(7, "portátil")
    clock.now = START + IDLE - 0.001
    found = await store.find(sesion.Token_Sesion)
    assert found is not None
    assert found.Ultima_Actividad == START + IDLE - 1


async def test_session_is_dead_at_the_second_of_its_expiry(
    clock: Clock, redis: Redis, store: SessionStore
) -> None:
    """The key is still there then, and no operation sees it."""
    dead = await store.create(7, "portátil")
    clock.now += 1
    other = await store.create(7, "móvil")
    token = dead.Token_Sesion
    clock.now = START + IDLE
    assert len(sessions(redis)) == 2

    assert await store.find(token) is None
    assert await store.update(dead) is None
    assert await store.update(with_dates(dead, IDLE + 100, IDLE)) is None
    assert await store.end(token, token) is Refusal.UNAUTHENTICATED
    assert await store.end_all(token, token) is Refusal.UNAUTHENTICATED
    assert await store.end(other.Token_Sesion, token) == 0
    assert await store.end_all(other.Token_Sesion, token) == 1


async def test_dead_session_of_another_user_is_not_forbidden(
    clock: Clock, redis: Redis, store: SessionStore
) -> None:
    """It is no 403, in the bucket of the caller and in another one."""
    dead = [await store.create(user, "ajeno") for user in (8, NEIGHBOUR)]
    clock.now += 1
    caller = (await store.create(7, "portátil")).Token_Sesion
    for sesion in dead:
        assert await store.end(caller, sesion.Token_Sesion) is Refusal.FORBIDDEN
    clock.now = START + IDLE
    assert len(sessions(redis)) == 3
    for sesion in dead:
        assert await store.end(caller, sesion.Token_Sesion) == 0
    assert await store.end_all(caller, dead[0].Token_Sesion) == 1


async def test_session_slides_for_hours_up_to_max(clock: Clock, store: SessionStore) -> None:
    sesion = await store.create(7, "portátil")
    token = sesion.Token_Sesion
    while clock.now + IDLE - 1 < START + MAX:
        clock.now += IDLE - 1
        found = await store.find(token)
        assert found == sesion._replace(
            Ultima_Actividad=int(clock.now),
            Fecha_Expiracion=min(int(clock.now) + IDLE, START + MAX),
        )
    clock.now = START + MAX - 1
    last = await store.find(token)
    assert last is not None
    assert (last.Fecha_Expiracion, last.Ultima_Actividad) == (START + MAX, START + MAX - 1)
    clock.now = START + MAX
    assert await store.find(token) is None


@pytest.mark.parametrize(
    ("touch", "window", "due"),
    [
        (0, 1800, 0),
        (1, 1800, 1),
        (60, 1800, 60),
        (1000, 1800, 900),  # half the window
        (60, 100, 50),
        (60, 11, 5),
        (60, 5, 2),
        (60, 3, 1),
        (60, 2, 1),
        (60, 1, 1),
    ],
)
async def test_session_slides_when_due(
    clock: Clock, redis: Redis, open_more: Opener, touch: int, window: int, due: int
) -> None:
    store = open_more(touch_seconds=touch, idle_seconds=window)
    sesion = await store.create(7, "portátil")
    # Another expiry: with a touch of 0 the slide shows in the same second, and with a window of 1
    # the session is there when it is due.
    other = sesion._replace(Fecha_Expiracion=START + due + 1)
    redis.expireat(session_key(sesion.Token_Sesion), other.Fecha_Expiracion)
    redis.zadd(index_key(7), indexed(other))
    for seconds in range(due):
        clock.now = START + seconds + 0.999
        assert await store.find(sesion.Token_Sesion) == other
    clock.now = START + due
    slid = with_dates(sesion, due + window, due)
    assert await store.find(sesion.Token_Sesion) == slid
    assert index(redis, 7) == indexed(slid)
    assert redis.expiretime(index_key(7)) == slid.Fecha_Expiracion
    stored = record(redis, session_key(sesion.Token_Sesion))
    assert (stored["actividad"], stored["ventana"]) == (str(START + due), str(window))


async def test_window_of_one_second_ends_on_time(clock: Clock, open_more: Opener) -> None:
    """Such a session never gets old enough to slide."""
    store = open_more(idle_seconds=1, touch_seconds=60)
    sesion = await store.create(7, "portátil")
    clock.now += 0.999
    assert await store.find(sesion.Token_Sesion) == sesion
    clock.now = START + 1
    assert await store.find(sesion.Token_Sesion) is None


async def test_slide_never_shortens(clock: Clock, redis: Redis, store: SessionStore) -> None:
    sesion = await store.create(7, "portátil")
    key, far = session_key(sesion.Token_Sesion), START + 2 * MAX
    redis.expireat(key, far)  # as under an earlier, longer MAX
    clock.now += 10
    assert await store.find(sesion.Token_Sesion) == with_dates(sesion, 2 * MAX, 10)
    assert redis.expiretime(key) == redis.expiretime(index_key(7)) == far


async def test_clock_that_steps_back_lengthens_lives_by_as_much(
    clock: Clock, store: SessionStore
) -> None:
    """A session that was used while the clock was ahead keeps the expiry that it got then."""
    used, unused = [(await store.create(7, name)).Token_Sesion for name in ("uno", "dos")]
    ahead = 600
    clock.now += ahead
    assert await store.find(used) is not None
    clock.now -= ahead
    clock.now += IDLE
    assert await store.find(unused) is None
    clock.now += ahead - 1
    assert await store.find(used) is not None


async def test_clock_that_steps_back_takes_no_date_back(clock: Clock, store: SessionStore) -> None:
    """This happens in a failover to a server whose clock is behind. No session ends, either."""
    clock.now += 100
    sesion = await store.create(7, "portátil")
    clock.now = START
    assert await store.find(sesion.Token_Sesion) == sesion
    assert await store.update(with_dates(sesion, IDLE + 100, 50)) == sesion


async def test_new_session_does_not_expire_after_max(open_more: Opener) -> None:
    store = open_more(idle_seconds=100, max_seconds=60)
    assert (await store.create(7, "portátil")).Fecha_Expiracion == START + 60


@pytest.mark.parametrize("meanwhile", ["nothing", "create", "logout", "logout_all", "index read"])
async def test_clock_that_jumps_ahead_and_back_leaves_nothing_that_logout_all_misses(
    clock: Clock, redis: Redis, store: SessionStore, meanwhile: str
) -> None:
    """Two hours ahead everything has expired. Whatever happens there and goes through an index may
    not leave a session that lives on, after the clock is back, where nothing finds it."""
    before = [await store.create(7, name) for name in ("uno", "dos", "tres")]
    clock.now = START + 7200
    if meanwhile == "index read":  # Redis drops it then, and not the sessions
        assert redis.zcard(index_key(7)) == 0
    elif meanwhile != "nothing":
        ahead = [(await store.create(7, name)).Token_Sesion for name in ("cuatro", "cinco")]
        if meanwhile == "logout":
            assert await store.end(ahead[0], ahead[1]) == 1
        if meanwhile == "logout_all":
            assert await store.end_all(ahead[0], ahead[0]) == 2
    clock.now = START + 10
    if meanwhile == "nothing":
        assert await store.find(before[0].Token_Sesion) is not None
    caller = (await store.create(7, "seis")).Token_Sesion
    assert isinstance(await store.end_all(caller, caller), int)
    for sesion in before:
        assert await store.find(sesion.Token_Sesion) is None
    assert sessions(redis) == []


async def test_id_counts_from_the_time_and_never_goes_back(
    clock: Clock, store: SessionStore
) -> None:
    """n is the time since 2026 in 256ths of a second, or one more than the last."""
    numbers = []
    begun = 1_767_225_600
    for seconds in (-1, -1, 0, 1 / 256, 1.5, 1.5, 7200, 2, 7200, 7200 + 1 / 128):
        clock.now = begun + seconds
        numbers.append((await store.create(7, "portátil")).ID_Sesion // 4096)
    ahead = 256 * 7200
    assert numbers == [1, 2, 3, 4, 384, 385, ahead, ahead + 1, ahead + 2, ahead + 3]


@pytest.mark.parametrize(
    ("dates", "result"),
    [
        # Now is 1000, the last use 900 and the expiry 2700. (Fecha_Expiracion, Ultima_Actividad)
        ((2700, 900), (2700, 900)),  # what self returned
        ((2700, 0), (2700, 900)),  # never back
        ((2700, 950), (2700, 950)),
        ((2700, 1000), (2700, 1000)),
        ((2700, 1001), (2700, 1000)),  # never beyond now
        ((2700, 2700), (2700, 1000)),  # no window where the expiry is the stored one
        ((2700, 9999), (2700, 1000)),
        ((2000, 1000), (2000, 1000)),  # a window of 1000
        ((2000, 900), (2000, 900)),
        ((2000, 500), (2400, 900)),  # a window of 1500 from the last use
        ((2000, 1500), (1500, 1000)),  # a window of 500 from now
        ((1100, 1099), (1001, 1000)),  # a window of 1
        ((1001, 1000), (1001, 1000)),
        ((5000, 1000), (5000, 1000)),
        ((MAX, 1000), (MAX, 1000)),
        ((MAX, 0), (MAX, 900)),  # a window of MAX, capped
        ((MAX - 1, 0), (MAX, 900)),
        ((MAX - 1000, -1000), (MAX, 900)),
        ((2000, 2000), "window"),
        ((2000, 2001), "window"),
        ((0, 1000), "window"),
        ((900, 900), "window"),
        ((MAX + 1, 1000), "lifetime"),
        ((MAX + 1, 0), "lifetime"),
        ((1000, 950), "past"),
        ((1000, 900), "past"),
        ((901, 900), "past"),
        ((100, 99), "past"),  # a window of 1 from the last use
        ((100, 0), "past"),  # at the very second
        ((101, 0), (1001, 900)),
        # The least and the greatest that there are.
        ((2700, -START), (2700, 900)),
        ((2700, INT_MAX - START), (2700, 1000)),
        ((1000, INT_MAX - START), "window"),
        ((INT_MAX - START, 1000), "lifetime"),
    ],
)
async def test_put_of_dates(
    clock: Clock,
    redis: Redis,
    store: SessionStore,
    dates: tuple[int, int],
    result: tuple[int, int] | str,
) -> None:
    token = (await store.create(7, "portátil")).Token_Sesion
    clock.now += 900
    before = await store.find(token)
    assert before is not None
    assert before == with_dates(before, 2700, 900)
    clock.now += 100
    stored = redis.hgetall(sessions(redis)[0])

    updated = await store.update(with_dates(before, *dates))
    if isinstance(result, str):
        assert updated == BadDates(result)  # type: ignore[arg-type]
        assert redis.hgetall(sessions(redis)[0]) == stored
        expected = (2700, 900)
    else:
        assert updated == with_dates(before, *result)
        expected = result
    index = redis.zrange(index_key(7), 0, -1, withscores=True)
    assert index == [(digest(token).encode(), START + expected[0])]
    assert redis.expiretime(index_key(7)) == START + expected[0]
    assert redis.expiretime(sessions(redis)[0]) == START + expected[0]


async def test_nothing_but_the_counter_is_left_when_sessions_have_expired(
    clock: Clock, redis: Redis, store: SessionStore
) -> None:
    """Neither sessions that were used nor those that ended leave a key. The counter of the bucket
    stays."""
    for device in range(5):
        sesion = await store.create(7, f"portátil {device}")
        clock.now += 60
        await store.find(sesion.Token_Sesion)
    await store.update(with_dates(sesion, MAX, 300))
    await store.end(sesion.Token_Sesion, sesion.Token_Sesion)
    assert len(redis.keys()) == 6
    clock.now += IDLE + 0.001
    assert redis.keys() == [b"sesiones:{eQ}:n"]


async def test_index_never_ends_before_its_sessions(
    clock: Clock, redis: Redis, open_more: Opener
) -> None:
    """Whichever session is the latest, and whether it then ends, shrinks or slides."""
    store = open_more(idle_seconds=100)
    first, second = [await store.create(7, name) for name in ("uno", "dos")]
    index = index_key(7)
    await store.update(with_dates(first, 500, 0))
    assert redis.expiretime(index) == START + 500
    await store.update(with_dates(first, 50, 0))
    assert redis.expiretime(index) == START + 100
    clock.now += 30
    await store.find(second.Token_Sesion)
    assert redis.expiretime(index) == START + 130
    await store.end(first.Token_Sesion, second.Token_Sesion)
    assert redis.expiretime(index) == START + 50
    clock.now = START + 49
    assert await store.end_all(first.Token_Sesion, "") == 1
    assert redis.keys() == [b"sesiones:{eQ}:n"]
