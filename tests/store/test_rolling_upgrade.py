"""A node of the version before and one of this share a Redis while an upgrade rolls: each reads,
slides, changes and ends the sessions of the other, and what a login asked for survives."""

from typing import Any

import pytest
from redis import Redis

from sesiones.sesion import Login, Sesion
from sesiones.store import SessionStore
from tests.harness.records import IDLE, MAX, age, index, indexed, session_key, state
from tests.harness.stores import Opener
from tests.store.previous_node import PreviousNode

pytestmark = pytest.mark.anyio

LIFE = Login(Ventana=900, Vida_Maxima=1000)


@pytest.fixture
def previous(redis: Redis) -> PreviousNode:
    return PreviousNode(redis)


def field_2(redis: Redis, sesion: Sesion) -> Any:
    return redis.hget(session_key(sesion.Token_Sesion), "2")


async def no_faults(store: SessionStore) -> None:
    assert [fault async for _, found in store.operators().audit() for fault in found] == []


async def test_new_node_uses_changes_and_ends_sessions_of_the_previous(
    redis: Redis, store: SessionStore, previous: PreviousNode
) -> None:
    one, two, three = [previous.create(7, name) for name in "abc"]
    assert one.Fecha_Expiracion == one.Fecha_Inicio + IDLE
    assert await store.find(one.Token_Sesion, slide=False) == one
    slid = await store.find(age(redis, one, 100).Token_Sesion)
    assert slid is not None
    assert slid.Ultima_Actividad >= one.Ultima_Actividad
    changed = await store.update(slid._replace(Dispositivo="e"))
    assert changed == slid._replace(Dispositivo="e")
    assert previous.find(one.Token_Sesion) == changed
    assert field_2(redis, one) is None
    assert {each.ID_Sesion for each in await store.sessions(7)} == {
        sesion.ID_Sesion for sesion in (one, two, three)
    }
    assert await store.end_one(one.Token_Sesion, two.ID_Sesion) == 1
    assert previous.find(two.Token_Sesion) is None
    assert await store.end_others(one.Token_Sesion) == 1
    new = await store.create(7, "d", Login(Token_Anterior=one.Token_Sesion))
    assert previous.find(one.Token_Sesion) is None
    assert index(redis, 7) == indexed(new)
    await no_faults(store)


async def test_previous_node_uses_changes_and_ends_sessions_of_the_new(
    redis: Redis, store: SessionStore, previous: PreviousNode
) -> None:
    """It ignores and preserves a life of their own."""
    plain, own = await store.create(7, "a"), await store.create(7, "b", LIFE)
    for sesion in plain, own:
        token = sesion.Token_Sesion
        assert previous.find(token, touch=60) == sesion
        aged = age(redis, sesion, 10)
        slid = previous.find(token)
        assert slid is not None
        assert slid.Ultima_Actividad > aged.Ultima_Actividad
        assert slid.Fecha_Expiracion >= aged.Fecha_Expiracion
        changed = previous.update(slid._replace(Dispositivo="e", Estado_Sesion=0))
        assert changed == slid._replace(Dispositivo="e", Estado_Sesion=0)
        assert await store.find(token) is None
        assert previous.update(slid) == slid
        assert await store.find(token) is not None
    assert field_2(redis, plain) is None
    assert field_2(redis, own) == b"1000"
    await no_faults(store)
    assert previous.end(plain.Token_Sesion, own.Token_Sesion) == 1
    assert await store.find(own.Token_Sesion) is None
    more = await store.create(7, "c", LIFE)
    assert previous.end_all(more.Token_Sesion) == 2
    assert [key for key in state(redis) if not key.endswith(":n")] == []


@pytest.mark.parametrize("by", ["slide", "PUT"])
@pytest.mark.parametrize("take_back", ["slide", "PUT"])
async def test_new_node_takes_back_what_the_previous_granted_beyond_the_own_life(
    redis: Redis, store: SessionStore, previous: PreviousNode, by: str, take_back: str
) -> None:
    sesion = age(redis, await store.create(7, "a", LIFE), 500)
    longest = sesion.Fecha_Inicio + 1000
    if by == "slide":
        granted = previous.find(sesion.Token_Sesion)
    else:
        later = sesion._replace(Fecha_Expiracion=sesion.Fecha_Inicio + MAX)
        granted = previous.update(later)  # type: ignore[assignment]
    assert isinstance(granted, Sesion)
    assert granted.Fecha_Expiracion > longest
    if take_back == "slide":
        age(redis, granted, 1)
        longest -= 1
        seen = await store.find(sesion.Token_Sesion)
    else:
        seen = await store.update(granted)  # type: ignore[assignment]
    assert isinstance(seen, Sesion)
    assert seen.Fecha_Expiracion == longest
    assert index(redis, 7) == indexed(seen)
    await no_faults(store)


async def test_session_that_the_previous_node_kept_beyond_its_life_ends_on_the_new_one(
    redis: Redis, store: SessionStore, previous: PreviousNode
) -> None:
    sesion = age(redis, await store.create(7, "a", LIFE), 800)
    granted = previous.find(sesion.Token_Sesion)
    assert granted is not None
    age(redis, granted, 300)
    assert previous.find(sesion.Token_Sesion) is not None
    assert previous.find(sesion.Token_Sesion, touch=0) is not None
    age(redis, granted, 1)
    assert await store.find(sesion.Token_Sesion) is None
    assert previous.find(sesion.Token_Sesion) is None
    assert index(redis, 7) == {}


async def test_longer_own_life_is_used_again_once_the_upgrade_is_over(
    redis: Redis, store: SessionStore, previous: PreviousNode
) -> None:
    """The previous node does not extend it beyond its setting, and takes nothing from it."""
    login = Login(Ventana=2 * MAX, Vida_Maxima=10 * MAX)
    sesion = age(redis, await store.create(7, "a", login), MAX + 100)
    seen = previous.find(sesion.Token_Sesion)
    assert seen is not None
    assert seen.Fecha_Expiracion == sesion.Fecha_Expiracion
    age(redis, seen, 10)
    slid = await store.find(sesion.Token_Sesion)
    assert slid is not None
    assert slid.Fecha_Expiracion == slid.Ultima_Actividad + 2 * MAX


async def test_both_nodes_apply_the_limit_to_the_sessions_of_both(
    redis: Redis, open_more: Opener, previous: PreviousNode
) -> None:
    store = open_more(max_per_user=3)
    for number in range(4):
        previous.create(7, "a", limit=3)
        assert len(index(redis, 7)) == min(3, 2 * number + 1)
        await store.create(7, "b", Login(Vida_Maxima=60 + number))
        assert len(index(redis, 7)) == min(3, 2 * number + 2)
    await no_faults(store)
    assert len(redis.keys("*:h:*")) == 3
