"""What update answers and changes in Redis. Dates to the second: clock/test_clock.py."""

from typing import Any

import pytest
from redis import Redis

from sesiones import tokens
from sesiones.sesion import Immutable
from sesiones.store import SessionStore
from tests.harness.records import (
    age,
    index,
    index_key,
    indexed,
    keys,
    record,
    session_key,
    state,
)

pytestmark = pytest.mark.anyio


async def test_update_writes_what_may_change(redis: Redis, store: SessionStore) -> None:
    sesion = age(redis, await store.create(7, "d"), 100)
    given = sesion._replace(
        Fecha_Expiracion=sesion.Fecha_Inicio + 500,
        Estado_Sesion=0,
        Ultima_Actividad=sesion.Fecha_Inicio + 50,
        Dispositivo="móvil",
    )
    assert await store.update(given) == given
    key = session_key(sesion.Token_Sesion)
    assert record(redis, key) == {
        "actividad": str(given.Ultima_Actividad),
        "uso": "50",
        "ventana": "450",
        "estado": "0",
        "id": str(sesion.ID_Sesion),
        "usuario": "7",
        "inicio": str(sesion.Fecha_Inicio),
        "dispositivo": "móvil",
    }
    assert redis.expiretime(key) == given.Fecha_Expiracion
    assert index(redis, 7) == indexed(given)
    assert redis.expiretime(index_key(7)) == given.Fecha_Expiracion


async def test_update_makes_a_session_inactive_and_active_again(store: SessionStore) -> None:
    sesion = await store.create(7, "d")
    inactive = sesion._replace(Estado_Sesion=0)
    assert await store.update(inactive) == inactive
    assert await store.find(sesion.Token_Sesion) is None
    assert await store.update(inactive) == inactive
    assert await store.update(sesion) == sesion
    assert await store.find(sesion.Token_Sesion) is not None


async def test_update_of_no_live_session_returns_none(redis: Redis, store: SessionStore) -> None:
    sesion = await store.create(7, "d")
    before = state(redis)
    for token in (tokens.make(7), "", "ses_", sesion.Token_Sesion + "\n", "ñ" * 49, "*"):
        assert await store.update(sesion._replace(Token_Sesion=token)) is None
    assert state(redis) == before
    await store.end(sesion.Token_Sesion, sesion.Token_Sesion)
    assert await store.update(sesion) is None
    assert keys(redis) == ["sesiones:{eQ}:n"]


@pytest.mark.parametrize(
    "fields",
    [
        ("ID_Sesion",),
        ("ID_Usuario",),
        ("Fecha_Inicio",),
        ("ID_Sesion", "Fecha_Inicio"),
        ("ID_Sesion", "ID_Usuario", "Fecha_Inicio"),
    ],
)
async def test_update_names_every_immutable_field_that_differs(
    redis: Redis, store: SessionStore, fields: tuple[str, ...]
) -> None:
    """The fields are named at once and before bad dates, and nothing is written."""
    sesion = await store.create(7, "d")
    before = state(redis)
    changes: Any = {field: getattr(sesion, field) + 1 for field in fields}
    given = sesion._replace(Fecha_Expiracion=0, Dispositivo="otro", **changes)
    assert await store.update(given) == Immutable(fields)
    assert state(redis) == before
