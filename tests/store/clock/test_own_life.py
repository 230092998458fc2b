"""Sessions with a window or a maximum life of their own, to the second."""

import pytest
from redis import Redis

from sesiones.sesion import BadDates, Login, Sesion
from sesiones.store import SessionStore
from sesiones.testing import START, Clock
from tests.harness.records import IDLE, MAX, index, indexed, session_key
from tests.harness.stores import Opener
from tests.store.clock.dates import with_dates

pytestmark = pytest.mark.anyio


async def uses(store: SessionStore, clock: Clock, token: str, step: int) -> int:
    """How many seconds a session lives that is used each ``step`` seconds."""
    begun = clock.now
    while (found := await store.find(token)) is not None:
        last = found.Fecha_Expiracion
        clock.now = min(clock.now + step, last)
        if clock.now == last:
            assert await store.find(token) is None
            return int(last - begun)
    raise AssertionError("the session ended before its expiry")


@pytest.mark.parametrize(
    ("login", "seconds"),
    [
        (Login(), MAX),
        (Login(Ventana=100), MAX),
        (Login(Vida_Maxima=100), 100),
        (Login(Vida_Maxima=5000), 5000),
        (Login(Vida_Maxima=5000, Ventana=60), 5000),
        (Login(Vida_Maxima=3 * MAX), 3 * MAX),
        (Login(Vida_Maxima=60, Ventana=60), 60),
    ],
    ids=str,
)
async def test_used_session_lives_as_long_as_its_own_life(
    clock: Clock, store: SessionStore, login: Login, seconds: int
) -> None:
    sesion = await store.create(7, "d", login)
    window = sesion.Fecha_Expiracion - sesion.Fecha_Inicio
    assert await uses(store, clock, sesion.Token_Sesion, window // 2) == seconds


@pytest.mark.parametrize("window", [1, 2, 100, MAX])
async def test_unused_session_lives_as_long_as_its_own_window(
    clock: Clock, store: SessionStore, window: int
) -> None:
    sesion = await store.create(7, "d", Login(Ventana=window))
    clock.now = START + window - 1
    assert (await store.find(sesion.Token_Sesion)) is not None
    clock.now += window if window < MAX else 1
    assert await store.find(sesion.Token_Sesion) is None


@pytest.mark.parametrize("seconds", [2, 60, 2 * MAX])
async def test_window_as_long_as_the_life_is_a_fixed_end(
    clock: Clock, store: SessionStore, seconds: int
) -> None:
    sesion = await store.create(7, "d", Login(Ventana=seconds, Vida_Maxima=seconds))
    for age in 0, 1, seconds // 2, seconds - 1:
        clock.now = START + age
        found = await store.find(sesion.Token_Sesion)
        assert found == with_dates(sesion, seconds, age)
        assert await store.update(found._replace(Dispositivo=f"e{age}")) is not None
        sesion = found._replace(Dispositivo=f"e{age}")
    clock.now = START + seconds
    assert await store.find(sesion.Token_Sesion) is None


async def test_update_is_bounded_by_the_own_life(
    clock: Clock, redis: Redis, store: SessionStore
) -> None:
    """Longer or shorter than the policy's, and the field survives."""
    for user, life in (7, 100), (8, 2 * MAX):
        clock.now = START
        sesion = await store.create(user, "d", Login(Vida_Maxima=life, Ventana=50))
        clock.now = START + 10
        assert await store.update(with_dates(sesion, life + 1, 10)) == BadDates("lifetime")
        given = with_dates(sesion, life, 10)._replace(Dispositivo="e")
        assert await store.update(given) == given
        assert redis.hget(session_key(sesion.Token_Sesion), "2") == b"%d" % life
        assert index(redis, user) == indexed(given)
        clock.now = START + 20
        found = await store.find(sesion.Token_Sesion)
        assert found == given._replace(Ultima_Actividad=START + 20)


async def test_own_life_does_not_follow_the_setting(clock: Clock, open_more: Opener) -> None:
    lower, higher = open_more(max_seconds=50, idle_seconds=50), open_more(max_seconds=5000)
    sesion = await higher.create(7, "d", Login(Vida_Maxima=200, Ventana=60))
    assert await uses(lower, clock, sesion.Token_Sesion, 30) == 200


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "0", "1.5", "0x10", "inf", "nan", " 60", "60 ", "9" * 400, "1" * 13]
)
async def test_malformed_life_counts_as_none_and_harms_no_check(
    clock: Clock, redis: Redis, store: SessionStore, text: str
) -> None:
    sesion, other = [await store.create(7, "d", Login(Vida_Maxima=60)) for _ in range(2)]
    redis.hset(session_key(sesion.Token_Sesion), "2", text)
    clock.now += 30
    found = await store.find(sesion.Token_Sesion)
    assert found == with_dates(sesion, 90, 30)
    assert await store.update(found._replace(Fecha_Expiracion=START + IDLE)) is not None
    assert await store.find(other.Token_Sesion) == with_dates(other, 60, 30)


# A node of the version before knows no field 2, and slides as far as its own setting.


def extend(redis: Redis, sesion: Sesion, expiry: int) -> Sesion:
    key = session_key(sesion.Token_Sesion)
    redis.expireat(key, expiry)
    redis.zadd(f"sesiones:{{eQ}}:u:{sesion.ID_Usuario}", {key[-22:]: expiry})
    redis.expireat(f"sesiones:{{eQ}}:u:{sesion.ID_Usuario}", expiry)
    return sesion._replace(Fecha_Expiracion=expiry)


@pytest.mark.parametrize("operation", ["check", "put", "put of other dates"])
async def test_session_that_was_extended_beyond_its_life_is_taken_back(
    clock: Clock, redis: Redis, store: SessionStore, operation: str
) -> None:
    sesion = await store.create(7, "d", Login(Vida_Maxima=100))
    extended = extend(redis, sesion, START + 1000)
    clock.now = START + 40
    match operation:
        case "check":
            answer = await store.find(sesion.Token_Sesion)
        case "put":
            answer = await store.update(extended._replace(Ultima_Actividad=START + 40))  # type: ignore[assignment]
        case _:
            answer = await store.update(with_dates(extended, 100, 40))  # type: ignore[assignment]
    taken_back = with_dates(sesion, 100, 40)
    assert answer == taken_back
    assert index(redis, 7) == indexed(taken_back)
    assert redis.expiretime(session_key(sesion.Token_Sesion)) == START + 100


@pytest.mark.parametrize("operation", ["check", "put"])
@pytest.mark.parametrize("late", [0, 1, 500])
async def test_session_that_was_extended_ends_once_its_life_is_over(
    clock: Clock, redis: Redis, store: SessionStore, operation: str, late: int
) -> None:
    sesion = await store.create(7, "d", Login(Vida_Maxima=100))
    other = await store.create(7, "e", Login(Ventana=MAX))
    extended = extend(redis, sesion, START + 1000)
    clock.now = START + 100 + late
    if operation == "check":
        assert await store.find(sesion.Token_Sesion) is None
    else:
        assert await store.update(extended) is None
    assert not redis.exists(session_key(sesion.Token_Sesion))
    assert index(redis, 7) == indexed(other)
