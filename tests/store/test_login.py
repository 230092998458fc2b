"""What a login asks for beside a user and a device, in one act with the new session. Windows and
lives to the second: clock/test_own_life.py."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from sesiones import tokens
from sesiones.policy import LIFE_MAX_SECONDS
from sesiones.redis_client import connect
from sesiones.sesion import INT_MAX, Login, StoreUnavailable
from sesiones.store import SessionStore, scripts
from tests.harness.faults import full, misconf, noreplicas
from tests.harness.metrics import counted
from tests.harness.records import (
    IDLE,
    MAX,
    NEIGHBOUR,
    index,
    index_key,
    indexed,
    session_key,
    state,
)
from tests.harness.redis_server import RedisServer
from tests.harness.stores import Opener, WrappedCommands, open_store, store_on
from tests.store.ended import endings, exists

pytestmark = pytest.mark.anyio

USERS = pytest.mark.parametrize("user", [7, NEIGHBOUR, 8], ids=["own", "same bucket", "other"])


# Window and life.


@pytest.mark.parametrize(
    ("login", "window", "field"),
    [
        (Login(), IDLE, None),
        (Login(Ventana=60), 60, None),
        (Login(Ventana=MAX), MAX, None),
        (Login(Vida_Maxima=60), 60, b"60"),
        (Login(Vida_Maxima=MAX), IDLE, b"43200"),
        (Login(Vida_Maxima=IDLE), IDLE, b"1800"),
        (Login(Ventana=60, Vida_Maxima=60), 60, b"60"),
        (Login(Ventana=1, Vida_Maxima=1), 1, b"1"),
        (Login(Ventana=86_400, Vida_Maxima=LIFE_MAX_SECONDS), 86_400, b"34560000"),
    ],
)
async def test_login_sets_window_and_life_of_its_session(
    redis: Redis, store: SessionStore, login: Login, window: int, field: bytes | None
) -> None:
    """A field is added only where the login has a life of its own, so others take no more memory.
    The window is the smaller one of the default and a life that is given alone."""
    sesion = await store.create(7, "d", login)
    assert sesion.Fecha_Expiracion == sesion.Fecha_Inicio + window
    stored = redis.hgetall(session_key(sesion.Token_Sesion))
    text = f"{sesion.Fecha_Inicio} 0 {window} 1 {sesion.ID_Sesion} 7:d".encode()
    assert stored == ({b"1": text} if field is None else {b"1": text, b"2": field})
    assert index(redis, 7) == indexed(sesion)


async def test_default_window_is_not_longer_than_the_policys_life(open_more: Opener) -> None:
    store = open_more(idle_seconds=100, max_seconds=100)
    sesion = await store.create(7, "d", Login(Vida_Maxima=500))
    assert sesion.Fecha_Expiracion - sesion.Fecha_Inicio == 100


INVALID: list[tuple[Any, type[Exception]]] = [
    ({"Ventana": 0}, ValueError),
    ({"Ventana": MAX + 1}, ValueError),
    ({"Ventana": 61, "Vida_Maxima": 60}, ValueError),
    ({"Ventana": True}, TypeError),
    ({"Ventana": 1.0}, TypeError),
    ({"Vida_Maxima": 0}, ValueError),
    ({"Vida_Maxima": LIFE_MAX_SECONDS + 1}, ValueError),
    ({"Vida_Maxima": "60"}, TypeError),
    ({"Cerrar_Otras": 2}, ValueError),
    ({"Cerrar_Otras": -1}, ValueError),
    ({"Cerrar_Otras": True}, TypeError),
    ({"Cerrar_Otras": None}, TypeError),
    ({"Max_Sesiones": 0}, ValueError),
    ({"Max_Sesiones": 1001}, ValueError),
    ({"Sustituye": 0}, ValueError),
    ({"Sustituye": INT_MAX + 1}, ValueError),
    ({"Sustituye": "1"}, TypeError),
    ({"Token_Anterior": 1}, TypeError),
    ({"Token_Anterior": b"ses_"}, TypeError),
]


@pytest.mark.parametrize(("fields", "error"), INVALID, ids=str)
async def test_login_with_an_invalid_field_raises_and_writes_nothing(
    redis: Redis, store: SessionStore, fields: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await store.create(7, "d", Login(**fields))
    assert state(redis) == {}


# Token_Anterior.


@USERS
@pytest.mark.parametrize("estado", [1, 0])
async def test_login_ends_the_session_of_the_previous_token(
    redis: Redis, store: SessionStore, caplog: pytest.LogCaptureFixture, user: int, estado: int
) -> None:
    """Of any user, active or not; and no other one of that user."""
    caplog.set_level(logging.INFO)
    previous, other = [await store.create(user, name) for name in "ab"]
    await store.update(previous._replace(Estado_Sesion=estado))
    new = await store.create(7, "c", Login(Token_Anterior=previous.Token_Sesion))
    assert exists(redis, previous, other, new) == [False, True, True]
    assert endings(caplog) == {previous.ID_Sesion: "replaced"}
    assert counted(store.metrics)["sesiones_sessions_ended_total['replaced']"] == 1
    assert await store.find(previous.Token_Sesion) is None
    expected = {7: [new]}
    expected[user] = [other, *expected.get(user, [])]
    for each, sesiones in expected.items():
        assert index(redis, each) == indexed(*sesiones)


@USERS
async def test_last_session_that_a_login_replaces_leaves_no_index(
    redis: Redis, store: SessionStore, user: int
) -> None:
    previous = await store.create(user, "a")
    new = await store.create(7, "c", Login(Token_Anterior=previous.Token_Sesion))
    assert redis.keys("*:u:*") == [index_key(7).encode()]
    assert index(redis, 7) == indexed(new)


@pytest.mark.parametrize(
    "token",
    ["", "x", "ses_", "*", "ñ" * 49, tokens.make(7), tokens.make(NEIGHBOUR), tokens.make(8)],
    ids=["empty", "x", "ses_", "star", "not ASCII", "own", "same bucket", "other bucket"],
)
@pytest.mark.parametrize("at_limit", ["end", "refuse"])
async def test_login_ignores_a_token_of_no_session(
    redis: Redis, open_more: Opener, token: str, at_limit: str
) -> None:
    store = open_more(at_limit=at_limit)
    other = await store.create(7, "a")
    new = await store.create(7, "d", Login(Token_Anterior=token))
    assert index(redis, 7) == indexed(other, new)


@USERS
async def test_previous_session_that_its_index_has_lost_ends(
    redis: Redis, store: SessionStore, user: int
) -> None:
    previous = await store.create(user, "a")
    redis.delete(index_key(user))
    new = await store.create(7, "c", Login(Token_Anterior=previous.Token_Sesion))
    assert exists(redis, previous, new) == [False, True]
    assert index(redis, 7) == indexed(new)


@pytest.mark.parametrize("user", [NEIGHBOUR, 8])
async def test_previous_session_ends_beside_an_index_of_another_type(
    redis: Redis, store: SessionStore, user: int
) -> None:
    previous = await store.create(user, "a")
    redis.set(index_key(user), "x", ex=100)
    new = await store.create(7, "c", Login(Token_Anterior=previous.Token_Sesion))
    assert exists(redis, previous, new) == [False, True]


# Sustituye, Cerrar_Otras.


async def test_login_ends_the_session_that_it_substitutes(
    redis: Redis, store: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one, two = [await store.create(7, name) for name in "ab"]
    new = await store.create(7, "c", Login(Sustituye=two.ID_Sesion))
    assert index(redis, 7) == indexed(one, new)
    assert endings(caplog) == {two.ID_Sesion: "replaced"}


async def test_login_ignores_the_number_of_no_session_of_the_user(
    redis: Redis, store: SessionStore
) -> None:
    """Of no session, of a neighbour's in the bucket, of another bucket's, of an ended one."""
    mine, gone = [await store.create(7, name) for name in "ab"]
    others = [await store.create(user, "d") for user in (NEIGHBOUR, 8)]
    assert await store.end(gone.Token_Sesion, gone.Token_Sesion) == 1
    made = [mine]
    for number in (1, INT_MAX, gone.ID_Sesion, *(other.ID_Sesion for other in others)):
        made.append(await store.create(7, "c", Login(Sustituye=number)))
    assert index(redis, 7) == indexed(*made)
    assert exists(redis, *others) == [True, True]


async def test_login_ends_every_other_session_of_the_user(
    redis: Redis, store: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = [await store.create(7, name) for name in "abc"]
    await store.update(made[0]._replace(Estado_Sesion=0))
    neighbour = await store.create(NEIGHBOUR, "d")
    new = await store.create(7, "c", Login(Cerrar_Otras=1))
    assert index(redis, 7) == indexed(new)
    assert exists(redis, *made, neighbour) == [False, False, False, True]
    assert endings(caplog) == {sesion.ID_Sesion: "others" for sesion in made}


async def test_each_session_ends_once_and_for_the_first_reason(
    redis: Redis, open_more: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = open_more(max_per_user=3)
    previous, substituted, other = [await store.create(7, name) for name in "abc"]
    login = Login(
        Token_Anterior=previous.Token_Sesion,
        Sustituye=substituted.ID_Sesion,
        Cerrar_Otras=1,
        Max_Sesiones=1,
    )
    new = await store.create(7, "d", login)
    assert index(redis, 7) == indexed(new)
    assert endings(caplog) == {
        previous.ID_Sesion: "replaced",
        substituted.ID_Sesion: "replaced",
        other.ID_Sesion: "others",
    }
    # The same session by its token and by its number.
    again = Login(Token_Anterior=new.Token_Sesion, Sustituye=new.ID_Sesion)
    last = await store.create(7, "e", again)
    assert index(redis, 7) == indexed(last)
    assert endings(caplog)[new.ID_Sesion] == "replaced"


# Redis fails.


@pytest.mark.parametrize("fault", [full, misconf, noreplicas])
@pytest.mark.parametrize("user", [7, NEIGHBOUR, 8])
async def test_login_that_redis_refuses_ends_nothing(
    own_server: RedisServer, fault: Callable[[RedisServer], Any], user: int
) -> None:
    async with open_store(own_server.url) as store:
        old = [await store.create(7, name) for name in "ab"]
        previous = await store.create(user, "c")
        login = Login(
            Token_Anterior=previous.Token_Sesion,
            Cerrar_Otras=1,
            Sustituye=old[0].ID_Sesion,
            Max_Sesiones=1,
        )
        with own_server.client() as redis:
            with fault(own_server), pytest.raises(StoreUnavailable):
                await store.create(7, "new", login)
            assert exists(redis, *old, previous) == [True] * 3
            assert len(redis.keys("*:h:*")) == 3


class FailsToRevoke(WrappedCommands):
    """The first ``failures`` revocations fail: the master of that hash slot is away."""

    failures = 1

    async def execute(self, *arguments: Any, **how: Any) -> Any:
        if arguments[1] == scripts.REVOKE.sha and self.failures > 0:
            self.failures -= 1
            raise RedisError("CLUSTERDOWN Hash slot not served")
        return await super().execute(*arguments, **how)


@pytest.mark.parametrize("failures", [1, 2])
async def test_login_is_undone_when_the_session_that_it_replaces_cannot_end(
    redis_server: RedisServer, redis: Redis, caplog: pytest.LogCaptureFixture, failures: int
) -> None:
    """As far as it can be: when the new session cannot end either, it expires unused."""
    commands = FailsToRevoke(connect(redis_server.url, 5.0))
    commands.failures = failures
    async with store_on(commands) as store:
        kept, previous = await store.create(7, "a"), await store.create(8, "b")
        caplog.set_level(logging.INFO)
        with pytest.raises(StoreUnavailable, match="CLUSTERDOWN"):
            await store.create(7, "c", Login(Token_Anterior=previous.Token_Sesion))
        assert exists(redis, kept, previous) == [True, True]
        assert redis.zcard(index_key(7)) == failures
        assert list(endings(caplog).values()) == (["undone"] if failures == 1 else [])
        made = await store.create(7, "c", Login(Token_Anterior=previous.Token_Sesion))
        assert exists(redis, kept, previous, made) == [True, False, True]


async def test_login_beside_a_bad_counter_or_index_ends_nothing(
    redis: Redis, store: SessionStore
) -> None:
    old, previous = await store.create(7, "a"), await store.create(NEIGHBOUR, "b")
    login = Login(Token_Anterior=previous.Token_Sesion, Cerrar_Otras=1)
    counter = redis.get("sesiones:{eQ}:n")
    redis.set("sesiones:{eQ}:n", "x")
    with pytest.raises(StoreUnavailable):
        await store.create(7, "c", login)
    assert exists(redis, old, previous) == [True, True]
    redis.set("sesiones:{eQ}:n", counter or b"")
    redis.set(index_key(7), "x", ex=100)
    with pytest.raises(StoreUnavailable):
        await store.create(7, "c", login)
    assert exists(redis, old, previous) == [True, True]


async def test_bad_record_of_the_user_ends_with_the_others(
    redis: Redis, store: SessionStore
) -> None:
    bad = [await store.create(7, name) for name in "abc"]
    redis.hset(session_key(bad[0].Token_Sesion), "1", "x")
    redis.set(session_key(bad[1].Token_Sesion), "x", ex=100)
    redis.persist(session_key(bad[2].Token_Sesion))
    new = await store.create(7, "c", Login(Cerrar_Otras=1, Sustituye=1))
    assert exists(redis, *bad, new) == [False, False, False, True]
    assert index(redis, 7) == indexed(new)
