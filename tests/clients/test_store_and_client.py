"""What SessionStore and SessionClient do alike: every test runs on a store, and on a client of a
service on the same Redis."""

import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis import Redis

from sesiones import (
    BadDates,
    Immutable,
    LimitReached,
    Login,
    Refusal,
    Sesion,
    SessionStore,
)
from sesiones.clients.http import SessionClient
from tests.harness.records import age
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service
from tests.harness.stores import KEY, open_store

pytestmark = pytest.mark.anyio

Sessions = SessionStore | SessionClient

NEIGHBOUR = 8
METHODS = [
    *("find", "create", "update", "end", "end_all", "end_others", "end_one", "list_sessions"),
    *("sessions", "end_user", "revoke"),
]
DEAD = "ses_eQ" + "A" * 43
"""The token of no session."""


def client_of(service: Service) -> SessionClient:
    return SessionClient(f"http://127.0.0.1:{service.port}", service_key=KEY, timeout_seconds=5)


@pytest.fixture(params=["store", "client"])
async def sessions(
    request: pytest.FixtureRequest, service: Service, store: SessionStore
) -> AsyncIterator[Sessions]:
    if request.param == "store":
        yield store
    else:
        async with client_of(service) as client:
            yield client


@pytest.fixture(scope="module")
def refusing_service(redis_server: RedisServer) -> Iterator[Service]:
    with Service(
        SESIONES_REDIS_URL=redis_server.url,
        SESIONES_SERVICE_KEY=KEY,
        SESIONES_REDIS_TIMEOUT="5",
        SESIONES_MAX_PER_USER="2",
        SESIONES_AT_LIMIT="refuse",
    ) as service:
        yield service


@pytest.fixture(params=["store", "client"])
async def refusing(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    refusing_service: Service,
    redis: "Redis",
) -> AsyncIterator[Sessions]:
    """At most two sessions of a user; one more is refused."""
    opened: Sessions = (
        open_store(redis_server.url, max_per_user=2, at_limit="refuse")
        if request.param == "store"
        else client_of(refusing_service)
    )
    async with opened:
        yield opened


async def ids(store: SessionStore, user: int = 7) -> set[int]:
    return {session.ID_Sesion for session in await store.sessions(user)}


async def make(store: SessionStore, *users: int) -> list[Sesion]:
    return [await store.create(user, f"device of {user}") for user in users]


def test_methods_and_arguments_are_the_same() -> None:
    for name in METHODS:
        of_store = inspect.signature(getattr(SessionStore, name))
        of_client = inspect.signature(getattr(SessionClient, name))
        parameters = [each for each in of_store.parameters.values() if each.name != "deep"]
        assert list(of_client.parameters.values()) == parameters, name
        assert of_client.return_annotation == of_store.return_annotation, name
    offered = {name for name in vars(SessionClient) if not name.startswith("_")} - {"aclose"}
    assert offered == set(METHODS)


# Create


async def test_create_makes_a_session_that_is_found(sessions: Sessions) -> None:
    made = await sessions.create(7, "portátil ☃")
    assert (made.ID_Usuario, made.Dispositivo, made.Estado_Sesion) == (7, "portátil ☃", 1)
    assert made.Fecha_Expiracion - made.Fecha_Inicio == 1800
    assert made.Fecha_Inicio == made.Ultima_Actividad
    found = await sessions.find(made.Token_Sesion)
    assert found is not None
    assert found[:4] == made[:4]


@pytest.mark.parametrize(
    ("login", "seconds"),
    [
        (Login(Ventana=100), 100),
        (Login(Ventana=43_200), 43_200),
        (Login(Vida_Maxima=60), 60),
        (Login(Vida_Maxima=34_560_000), 1800),
        (Login(Ventana=34_560_000, Vida_Maxima=34_560_000), 34_560_000),
        (Login(Ventana=1, Vida_Maxima=1), 1),
    ],
)
async def test_create_gives_the_session_its_window(
    sessions: Sessions, login: Login, seconds: int
) -> None:
    made = await sessions.create(7, "d", login)
    assert made.Fecha_Expiracion - made.Fecha_Inicio == seconds


async def test_create_ends_the_sessions_that_it_replaces(
    sessions: Sessions, store: SessionStore
) -> None:
    one, two, three, other = await make(store, 7, 7, 7, NEIGHBOUR)
    made = await sessions.create(7, "d", Login(Token_Anterior=one.Token_Sesion))
    assert await ids(store) == {two.ID_Sesion, three.ID_Sesion, made.ID_Sesion}
    last = await sessions.create(7, "d", Login(Sustituye=two.ID_Sesion))
    assert await ids(store) == {three.ID_Sesion, made.ID_Sesion, last.ID_Sesion}
    await sessions.create(7, "d", Login(Token_Anterior=other.Token_Sesion))
    assert await ids(store, NEIGHBOUR) == set()
    assert len(await ids(store)) == 4
    made = await sessions.create(7, "d", Login(Cerrar_Otras=1))
    assert await ids(store) == {made.ID_Sesion}


@pytest.mark.parametrize("previous", ["", "x", DEAD, "\ud800", "ñ" * 20_000])
async def test_create_ignores_a_previous_token_without_a_session(
    sessions: Sessions, store: SessionStore, previous: str
) -> None:
    (one,) = await make(store, 7)
    made = await sessions.create(7, "d", Login(Token_Anterior=previous, Sustituye=1))
    assert await ids(store) == {one.ID_Sesion, made.ID_Sesion}


async def test_create_beyond_the_limit_of_a_login_ends_the_first(
    sessions: Sessions, store: SessionStore
) -> None:
    _, two = await make(store, 7, 7)
    await store.update(two._replace(Fecha_Expiracion=two.Fecha_Expiracion + 60))
    made = await sessions.create(7, "d", Login(Max_Sesiones=2))
    assert await ids(store) == {two.ID_Sesion, made.ID_Sesion}


async def test_create_at_the_limit_is_refused_with_the_list(refusing: Sessions) -> None:
    one, two = [await refusing.create(7, f"device {n}") for n in (1, 2)]
    with pytest.raises(LimitReached) as raised:
        await refusing.create(7, "d")
    found = raised.value.sessions
    assert [each.ID_Sesion for each in found] == [
        each.ID_Sesion
        for each in sorted((one, two), key=lambda s: (-s.Ultima_Actividad, -s.ID_Sesion))
    ]
    assert {each.Dispositivo for each in found} == {"device 1", "device 2"}
    assert {each.ID_Usuario for each in found} == {7}
    assert {each.Actual for each in found} == {None}
    with pytest.raises(LimitReached):
        await refusing.create(7, "d", Login(Max_Sesiones=1, Sustituye=one.ID_Sesion))
    assert len(await refusing.sessions(7)) == 2  # a refusal ends nothing
    made = await refusing.create(7, "d", Login(Sustituye=one.ID_Sesion))
    assert {each.ID_Sesion for each in await refusing.sessions(7)} == {
        two.ID_Sesion,
        made.ID_Sesion,
    }


@pytest.mark.parametrize(
    "login",
    [
        Login(Ventana=43_201),
        Login(Ventana=61, Vida_Maxima=60),
        Login(Max_Sesiones=1001),
    ],
)
async def test_create_refuses_what_the_policy_does_not_allow(
    sessions: Sessions, redis: "Redis", login: Login
) -> None:
    with pytest.raises(ValueError, match=r"Ventana|Max_Sesiones"):
        await sessions.create(7, "d", login)
    assert redis.dbsize() == 0


# Update


async def test_update_returns_the_session_as_it_stands(sessions: Sessions) -> None:
    made = await sessions.create(7, "d")
    assert await sessions.update(made) == made
    changed = made._replace(Dispositivo="teléfono", Estado_Sesion=0)
    assert await sessions.update(changed) == changed
    assert await sessions.find(made.Token_Sesion) is None
    later = made._replace(Fecha_Expiracion=made.Fecha_Expiracion + 60)
    assert await sessions.update(later) == later


async def test_update_of_no_session_is_none(sessions: Sessions) -> None:
    made = await sessions.create(7, "d")
    for token in DEAD, "x", made.Token_Sesion + "\n":
        assert await sessions.update(made._replace(Token_Sesion=token)) is None


async def test_update_of_immutable_fields_names_them(sessions: Sessions) -> None:
    made = await sessions.create(7, "d")
    for fields in ("ID_Sesion",), ("ID_Usuario", "Fecha_Inicio"):
        changed = made._replace(**{field: getattr(made, field) + 1 for field in fields})
        assert await sessions.update(changed) == Immutable(fields)


async def test_update_with_bad_dates_says_why(sessions: Sessions, redis: "Redis") -> None:
    made = age(redis, await sessions.create(7, "d"), 100)
    for reason, seconds in ("window", 0), ("lifetime", 43_201), ("past", 50):
        given = made._replace(Fecha_Expiracion=made.Ultima_Actividad + seconds)
        refused = await sessions.update(given)
        assert isinstance(refused, BadDates)
        assert refused.reason == reason


# End


async def test_end_ends_the_designated_session(sessions: Sessions, store: SessionStore) -> None:
    one, two, other = await make(store, 7, 7, NEIGHBOUR)
    assert await sessions.end(one.Token_Sesion, two.Token_Sesion) == 1
    assert await sessions.end(one.Token_Sesion, two.Token_Sesion) == 0
    assert await sessions.end(one.Token_Sesion, other.Token_Sesion) is Refusal.FORBIDDEN
    assert await sessions.end(two.Token_Sesion, one.Token_Sesion) is Refusal.UNAUTHENTICATED
    assert await sessions.end(one.Token_Sesion, "x") == 0
    assert await sessions.end("x", one.Token_Sesion) is Refusal.UNAUTHENTICATED
    assert await ids(store) == {one.ID_Sesion}
    assert await sessions.end(one.Token_Sesion, one.Token_Sesion) == 1


async def test_end_all_ends_every_session_of_the_user(
    sessions: Sessions, store: SessionStore
) -> None:
    one, two, _, other = await make(store, 7, 7, 7, NEIGHBOUR)
    await store.update(two._replace(Estado_Sesion=0))
    assert await sessions.end_all(one.Token_Sesion, other.Token_Sesion) is Refusal.FORBIDDEN
    assert await sessions.end_all(one.Token_Sesion, "x") == 3
    last = await store.create(7, "d")
    nothing: Any = None
    assert await sessions.end_all(last.Token_Sesion, nothing) == 1
    assert await sessions.end_all(one.Token_Sesion, one.Token_Sesion) is Refusal.UNAUTHENTICATED
    assert await sessions.end_all("x", one.Token_Sesion) is Refusal.UNAUTHENTICATED
    assert await ids(store, NEIGHBOUR) == {other.ID_Sesion}


async def test_end_others_leaves_the_callers_session(
    sessions: Sessions, store: SessionStore
) -> None:
    one, two, _, other = await make(store, 7, 7, 7, NEIGHBOUR)
    await store.update(two._replace(Estado_Sesion=0))
    for token in two.Token_Sesion, DEAD, "x":
        assert await sessions.end_others(token) is Refusal.UNAUTHENTICATED
    assert await sessions.end_others(one.Token_Sesion) == 2
    assert await sessions.end_others(one.Token_Sesion) == 0
    assert await ids(store) == {one.ID_Sesion}
    assert await ids(store, NEIGHBOUR) == {other.ID_Sesion}


async def test_end_one_ends_a_session_of_the_user_alone(
    sessions: Sessions, store: SessionStore
) -> None:
    one, two, other = await make(store, 7, 7, NEIGHBOUR)
    for which, count in ((other, 0), (two, 1), (two, 0)):
        assert await sessions.end_one(one.Token_Sesion, which.ID_Sesion) == count
    for token in two.Token_Sesion, DEAD, "x":
        assert await sessions.end_one(token, one.ID_Sesion) is Refusal.UNAUTHENTICATED
    assert await ids(store, NEIGHBOUR) == {other.ID_Sesion}
    assert await sessions.end_one(one.Token_Sesion, one.ID_Sesion) == 1
    assert await ids(store) == set()


async def test_end_user_ends_one_or_all_without_a_token(
    sessions: Sessions, store: SessionStore
) -> None:
    one, _, _, other = await make(store, 7, 7, 7, NEIGHBOUR)
    assert await sessions.end_user(7, other.ID_Sesion) == 0
    assert await sessions.end_user(7, one.ID_Sesion) == 1
    assert await sessions.end_user(7) == 2
    assert await sessions.end_user(7) == 0
    assert await ids(store, NEIGHBOUR) == {other.ID_Sesion}


async def test_revoke_ends_the_session_of_a_token(sessions: Sessions, store: SessionStore) -> None:
    one, two, three = await make(store, 7, 7, 7)
    await store.update(two._replace(Estado_Sesion=0))
    for token in one.Token_Sesion, one.Token_Sesion, two.Token_Sesion, DEAD, "x":
        await sessions.revoke(token)
    assert await ids(store) == {three.ID_Sesion}


# List


async def test_lists_have_the_latest_used_first(
    sessions: Sessions, store: SessionStore, redis: "Redis"
) -> None:
    old, off, caller, last, _ = await make(store, 7, 7, 7, 7, NEIGHBOUR)
    old, off, caller, last = (
        age(redis, each, seconds)
        for each, seconds in ((old, 90), (off, 60), (caller, 30), (last, 60))
    )
    await store.update(off._replace(Estado_Sesion=0, Dispositivo="teléfono"))
    wanted = [caller.ID_Sesion, last.ID_Sesion, off.ID_Sesion, old.ID_Sesion]

    listed = await sessions.sessions(7)
    assert [each.ID_Sesion for each in listed] == wanted
    assert [each.to_dict() for each in listed][2] == {
        "ID_Sesion": off.ID_Sesion,
        "Fecha_Inicio": off.Fecha_Inicio,
        "Fecha_Expiracion": off.Fecha_Expiracion,
        "Estado_Sesion": 0,
        "Ultima_Actividad": off.Ultima_Actividad,
        "Dispositivo": "teléfono",
    }
    assert {(each.ID_Usuario, each.Actual) for each in listed} == {(7, None)}

    own = await sessions.list_sessions(caller.Token_Sesion)
    assert own is not None
    assert [each.ID_Sesion for each in own] == wanted
    assert [each.Actual for each in own] == [True, False, False, False]
    assert [each._replace(Actual=None).to_dict() for each in own][1:] == [
        each.to_dict() for each in listed
    ][1:]
    assert own[0].Ultima_Actividad >= listed[0].Ultima_Actividad + 30  # the list was a use
    assert await sessions.sessions(10**6) == []


async def test_list_of_a_caller_without_a_session_is_none(
    sessions: Sessions, store: SessionStore
) -> None:
    (one,) = await make(store, 7)
    await store.update(one._replace(Estado_Sesion=0))
    for token in one.Token_Sesion, DEAD, "x":
        assert await sessions.list_sessions(token) is None
