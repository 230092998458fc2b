"""What SessionStore and SessionClient refuse alike before they send anything, and what they raise
where nothing answers."""

from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from sesiones import Login, Refusal, Sesion, SessionStore, StoreUnavailable
from sesiones.clients.http import SessionClient
from tests.harness.stores import KEY

pytestmark = pytest.mark.anyio

Sessions = SessionStore | SessionClient

DEAD = "ses_eQ" + "A" * 43
"""The token of no session."""


@pytest.fixture(params=["store", "client"])
async def unreachable(request: pytest.FixtureRequest) -> AsyncIterator[Sessions]:
    opened: Sessions = (
        SessionStore.from_url("redis://127.0.0.1:1")
        if request.param == "store"
        else SessionClient("http://127.0.0.1:1", service_key=KEY)
    )
    async with opened:
        yield opened


BAD_INTEGERS: list[Any] = [None, True, "7", 7.0, b"7", -1, 2**53]


@pytest.mark.parametrize("value", BAD_INTEGERS)
async def test_bad_integer_is_refused_before_anything_is_sent(
    unreachable: Sessions, value: Any
) -> None:
    wanted = ValueError if type(value) is int else TypeError
    calls: list[Awaitable[object]] = [
        unreachable.create(value, "d"),
        unreachable.sessions(value),
        unreachable.end_user(value),
        unreachable.end_one(DEAD, value),
        unreachable.update(SESION._replace(ID_Usuario=value)),
    ]
    for call in calls:
        with pytest.raises(wanted):
            await call
    if value is not None:
        with pytest.raises(wanted):
            await unreachable.end_user(7, value)


SESION = Sesion(4096, 7, DEAD, 1, 2, 1, 1, "d")


@pytest.mark.parametrize(
    "fields",
    [
        {field: value}
        for field in ("Ventana", "Vida_Maxima", "Max_Sesiones", "Sustituye")
        for value in (0, -1, 2**53, "1", True, 1.0)
    ]
    + [
        *({"Cerrar_Otras": value} for value in (2, -1, True, "1", None)),
        *({"Token_Anterior": value} for value in (7, b"x")),
        {"Vida_Maxima": 34_560_001},
        {"Ventana": 11, "Vida_Maxima": 10},
    ],
    ids=str,
)
async def test_bad_login_is_refused_before_anything_is_sent(
    unreachable: Sessions, fields: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError), match="|".join(fields)):
        await unreachable.create(7, "d", Login(**fields))


async def test_arguments_of_another_type_are_refused_before_anything_is_sent(
    unreachable: Sessions,
) -> None:
    bad: Any
    for bad in None, {}, 7, SESION:
        with pytest.raises(TypeError):
            await unreachable.create(7, "d", bad)
    for bad in None, {}, 7, SESION._asdict():
        with pytest.raises(TypeError):
            await unreachable.update(bad)
    for bad in None, 7, b"d":
        with pytest.raises(TypeError):
            await unreachable.create(7, bad)
    for device in "", "x" * 513, "a\nb", "\ud800":
        with pytest.raises(ValueError, match="Dispositivo"):
            await unreachable.create(7, device)


async def test_malformed_token_is_the_token_of_no_session(unreachable: Sessions) -> None:
    """Nothing is sent."""
    bad: Any
    for bad in None, 7, "", "x", DEAD + "\n", b"x":
        assert await unreachable.find(bad) is None
        assert await unreachable.list_sessions(bad) is None
        assert await unreachable.end(bad, DEAD) is Refusal.UNAUTHENTICATED
        assert await unreachable.end(DEAD, bad) == 0
        assert await unreachable.end_all(bad, DEAD) is Refusal.UNAUTHENTICATED
        assert await unreachable.end_others(bad) is Refusal.UNAUTHENTICATED
        assert await unreachable.end_one(bad, 1) is Refusal.UNAUTHENTICATED
        await unreachable.revoke(bad)


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "find": (DEAD,),
    "create": (7, "d"),
    "update": (SESION,),
    "end": (DEAD, DEAD),
    "end_all": (DEAD, DEAD),
    "end_others": (DEAD,),
    "end_one": (DEAD, 1),
    "list_sessions": (DEAD,),
    "sessions": (7,),
    "end_user": (7,),
    "revoke": (DEAD,),
}


@pytest.mark.parametrize("name", ARGUMENTS)
async def test_method_raises_where_it_cannot_ask(unreachable: Sessions, name: str) -> None:
    with pytest.raises(StoreUnavailable):
        await getattr(unreachable, name)(*ARGUMENTS[name])
