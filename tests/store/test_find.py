"""What find answers and changes in Redis, and many checks at once. Slides to the second:
clock/test_clock.py."""

import asyncio
from typing import Any

import pytest
from redis import Redis

from sesiones import tokens
from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore
from sesiones.store.checks import CheckQueue
from tests.harness.records import (
    age,
    index,
    indexed,
    session_key,
    state,
)
from tests.harness.redis_server import RedisServer
from tests.harness.stores import Opener, open_store

pytestmark = pytest.mark.anyio


async def test_find_unknown_token_returns_none_and_writes_nothing(
    redis: Redis, store: SessionStore
) -> None:
    assert await store.find(tokens.make(7)) is None
    assert state(redis) == {}


async def test_find_altered_token_returns_none(store: SessionStore) -> None:
    token = (await store.create(7, "d")).Token_Sesion
    other = token[:-1] + ("A" if token[-1] != "A" else "E")
    assert await store.find(other) is None
    assert await store.find(token.replace("ses_eQ", "ses_eR")) is None


async def test_find_inactive_session_returns_none_and_writes_nothing(
    redis: Redis, store: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not slid, and no error is logged."""
    sesion = await store.create(7, "d")
    await store.update(sesion._replace(Estado_Sesion=0))
    age(redis, sesion, 100)
    before = state(redis)
    assert await store.find(sesion.Token_Sesion) is None
    assert state(redis) == before
    assert caplog.records == []


async def test_find_writes_nothing_when_no_slide_is_due(redis: Redis, open_more: Opener) -> None:
    store = open_more(touch_seconds=60)
    sesion = await store.create(7, "d")
    before = state(redis)
    assert await store.find(sesion.Token_Sesion) == sesion
    assert state(redis) == before


async def test_slide_and_update_keep_unknown_fields(redis: Redis, store: SessionStore) -> None:
    sesion = await store.create(7, "d")
    key = session_key(sesion.Token_Sesion)
    extra: dict[Any, Any] = {b"d:tema": b"oscuro", b"otro": b"\xff\x00"}
    redis.hset(key, mapping=extra)
    sesion = age(redis, sesion, 10)
    found = await store.find(sesion.Token_Sesion)
    assert found is not None
    assert found.Ultima_Actividad > sesion.Ultima_Actividad
    await store.update(found._replace(Dispositivo="otro"))
    fields = redis.hgetall(key)
    assert len(fields) == 3
    assert fields.items() >= extra.items()


async def test_find_is_unavailable_when_the_store_has_a_bug(
    store: SessionStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def bug(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(CheckQueue, "_fetch", bug)
    with pytest.raises(StoreUnavailable):
        await store.find(tokens.make(7))
    assert caplog.records[0].exc_info


# Many at once.


async def test_hundreds_of_checks_at_once_get_their_own_answers(
    redis: Redis, store: SessionStore
) -> None:
    """There are more of them than one call may carry, of many buckets, and ended sessions between
    them."""
    made = [await store.create(user, "d") for user in range(400)]
    for sesion in made[::3]:
        await store.end(sesion.Token_Sesion, sesion.Token_Sesion)
    for sesion in made[1::3]:
        age(redis, sesion, 50)
    found = await asyncio.gather(*(store.find(sesion.Token_Sesion) for sesion in made))
    assert found[::3] == [None] * 134
    for sesion, seen in zip(made, found, strict=True):
        assert seen is None or seen.Token_Sesion == sesion.Token_Sesion
        assert seen is None or seen.ID_Usuario == sesion.ID_Usuario
    assert None not in found[1::3] + found[2::3]


async def test_hundreds_of_checks_of_one_session_at_once_find_it(
    redis: Redis, store: SessionStore
) -> None:
    sesion = age(redis, await store.create(7, "d"), 10)
    found = await asyncio.gather(*(store.find(sesion.Token_Sesion) for _ in range(500)))
    assert None not in found
    assert index(redis, 7) == indexed(max(seen for seen in found if seen is not None))


async def test_cancelled_checks_harm_no_other(store: SessionStore) -> None:
    made = [await store.create(usuario, "x") for usuario in range(20)]

    async def one(index: int) -> None:
        sesion = made[index % 20]
        task = asyncio.create_task(store.find(sesion.Token_Sesion))
        if index % 3 == 0:
            for _ in range(index % 7):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            found = await task
            assert found is not None
            assert found.ID_Sesion == sesion.ID_Sesion

    for _ in range(20):
        await asyncio.gather(*(one(index) for index in range(300)))


async def test_checks_of_any_slots_share_calls(redis_server: RedisServer, redis: Any) -> None:
    store = open_store(redis_server.url)
    made = [await store.create(usuario, "x") for usuario in range(100)]
    redis.config_resetstat()
    asked = [sesion.Token_Sesion for sesion in made] + [tokens.make(7) for _ in range(100)]
    found = await asyncio.gather(*(store.find(token) for token in asked))
    assert [sesion and sesion.ID_Sesion for sesion in found] == [
        sesion.ID_Sesion for sesion in made
    ] + [None] * 100
    assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] == 4  # of 64
    await store.aclose()
