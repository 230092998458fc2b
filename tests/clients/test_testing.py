"""sesiones.testing: the fixtures for the tests of an application."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from sesiones import LimitReached, SessionStore, SyncSessionStore
from sesiones.testing import START, Clock, open_session_store, session_clock, session_store

__all__ = ["open_session_store", "session_clock", "session_store"]

OpenStore = Callable[..., SessionStore]

pytestmark = pytest.mark.anyio


async def test_time_stands_still_until_the_test_moves_it(
    session_store: SessionStore, session_clock: Clock
) -> None:
    sesion = await session_store.create(7, "laptop")
    assert (sesion.Fecha_Inicio, sesion.Fecha_Expiracion) == (START, START + 1800)
    session_clock.now += 1799
    found = await session_store.find(sesion.Token_Sesion)
    assert found is not None
    assert (found.Ultima_Actividad, found.Fecha_Expiracion) == (START + 1799, START + 1799 + 1800)
    session_clock.now += 1800
    assert await session_store.find(sesion.Token_Sesion) is None
    assert await session_store.sessions(7) == []


async def test_stores_of_a_test_share_their_sessions(open_session_store: OpenStore) -> None:
    one, two = open_session_store(), open_session_store(max_per_user=1, at_limit="refuse")
    sesion = await one.create(7, "laptop")
    assert await two.find(sesion.Token_Sesion) == sesion
    with pytest.raises(LimitReached):
        await two.create(7, "phone")
    assert await two.end(sesion.Token_Sesion, sesion.Token_Sesion) == 1
    assert await one.find(sesion.Token_Sesion) is None


async def test_no_session_is_left_of_another_test(session_store: SessionStore) -> None:
    assert not await session_store.operators().was_used()


def test_store_in_memory_works_in_any_loop_and_thread(session_store: SessionStore) -> None:
    token = asyncio.run(session_store.create(7, "laptop")).Token_Sesion
    assert asyncio.run(session_store.find(token)) is not None
    with SyncSessionStore(session_store) as sync_store:

        def check() -> None:
            for _ in range(50):
                assert sync_store.find(token) is not None

        checks = [threading.Thread(target=check) for _ in range(4)]
        for thread in checks:
            thread.start()
        for thread in checks:
            thread.join()
        assert sync_store.end(token, token) == 1
    assert asyncio.run(session_store.find(token)) is None


def test_policy_is_checked_as_the_settings_are(open_session_store: OpenStore) -> None:
    with pytest.raises(ValueError, match="must be"):
        open_session_store(idle_seconds=0)
    for name in "idle_second", "cache_seconds":
        with pytest.raises(TypeError, match=name):
            open_session_store(**{name: 1})
