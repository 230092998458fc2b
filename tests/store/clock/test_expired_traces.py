"""What is known of a session that has expired: Redis deletes its key without a word."""

from typing import Any

import pytest

from sesiones import tokens
from sesiones.sesion import Login, Sesion
from sesiones.store import SessionStore
from sesiones.store.traces import Trace
from sesiones.testing import Clock, ClockedRedis
from tests.harness.records import base, index_key
from tests.harness.stores import store_on

pytestmark = pytest.mark.anyio

KEEP_SECONDS = 3600


@pytest.fixture
def store(fake: ClockedRedis) -> SessionStore:
    return store_on(fake, why_seconds=KEEP_SECONDS)


def expired(sesion: Sesion) -> Trace:
    fingerprint = tokens.fingerprint(sesion.Token_Sesion)
    return Trace(fingerprint, sesion.Fecha_Expiracion, "expired", None, 7, None, "")


async def test_expiry_is_known_of_a_user_who_is_not_back(clock: Clock, store: SessionStore) -> None:
    sesion = await store.create(7, "laptop")
    clock.now += 1800
    assert await store.operators().why(7) == ([], [expired(sesion)])
    assert await store.operators().why(sesion.Token_Sesion) == ([], [])
    assert await store.operators().why(sesion.Token_Sesion, deep=True) == ([], [expired(sesion)])
    assert await store.operators().why(tokens.fingerprint(sesion.Token_Sesion)) == (
        [],
        [expired(sesion)],
    )
    clock.now += KEEP_SECONDS + 1
    assert await store.operators().why(7) == ([], [])


async def test_expiry_is_known_of_a_user_who_is_back(
    clock: Clock, store: SessionStore, redis: Any
) -> None:
    sesion = await store.create(7, "laptop")
    clock.now += 2000
    new = await store.create(7, "laptop")
    live, traces = await store.operators().why(7)
    assert ([each.ID_Sesion for each in live], traces) == ([new.ID_Sesion], [expired(sesion)])
    assert await store.operators().why(sesion.Token_Sesion) == ([], [expired(sesion)])
    assert await store.operators().why(8) == ([], [])
    clock.now += KEEP_SECONDS
    await store.end_user(7)
    assert expired(sesion) not in (await store.operators().why(7))[1]


@pytest.mark.parametrize("write", ["find", "update", "end", "end_all", "end_others", "list"])
async def test_every_write_to_the_index_leaves_the_trace_of_an_expiry(
    clock: Clock, store: SessionStore, write: str
) -> None:
    short = await store.create(7, "laptop", Login(Ventana=10))
    other = await store.create(7, "phone")
    token = other.Token_Sesion
    clock.now += 10
    match write:
        case "find":
            assert await store.find(token) is not None
        case "update":
            moved = other._replace(Fecha_Expiracion=other.Fecha_Expiracion + 9)
            assert isinstance(await store.update(moved), Sesion)
        case "end" | "end_all":
            assert await getattr(store, write)(token, token) == 1
        case "end_others":
            assert await store.end_others(token) == 0
        case "list":  # reads alone
            assert len(await store.sessions(7)) == 1
    assert expired(short) in (await store.operators().why(7))[1]
    assert ((await store.operators().why(short.Token_Sesion))[1] == [expired(short)]) == (
        write != "list"
    )


async def test_nothing_is_left_behind_in_the_end(
    clock: Clock, store: SessionStore, redis: Any
) -> None:
    one, two = await store.create(7, "laptop"), await store.create(7, "phone")
    await store.end(one.Token_Sesion, one.Token_Sesion)
    await store.update(two._replace(Fecha_Expiracion=two.Fecha_Expiracion - 60))
    assert redis.exists(index_key(7), f"{base(7)}w") == 2
    clock.now += 1801 + KEEP_SECONDS
    assert redis.keys("*") == [f"{base(7)}n".encode()]


async def test_sessions_that_have_expired_count_for_no_limit(
    clock: Clock, store: SessionStore
) -> None:
    for _ in range(3):
        last = await store.create(7, "laptop", Login(Max_Sesiones=1))
        clock.now += 1800
    new = await store.create(7, "laptop", Login(Max_Sesiones=1))
    assert [each.ID_Sesion for each in await store.sessions(7)] == [new.ID_Sesion]
    assert {trace.reason for trace in (await store.operators().why(7))[1]} == {"expired"}
    assert await store.end_all(last.Token_Sesion, "") != 1
