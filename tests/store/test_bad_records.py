"""Records that no script of the store writes: a check of one finds no session and logs an error; no
other session is harmed."""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from sesiones import tokens
from sesiones.sesion import Refusal, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.records import (
    MAX,
    NEIGHBOUR,
    NUMBERS,
    age,
    index_key,
    keys,
    lua,
    session_key,
    write_record,
)

pytestmark = pytest.mark.anyio


def replaced(old: str, new: str) -> Callable[[Redis, str], object]:
    """A record with another text in the place of one."""

    def replace(redis: Any, key: str) -> object:
        text, replacements = re.subn(old, new, str(redis.hget(key, "1"), "utf-8"), count=1)
        assert replacements == 1
        return redis.hset(key, "1", text)

    return replace


def changed(**fields: object) -> Callable[[Redis, str], object]:
    return lambda redis, key: write_record(redis, key, **fields)


BAD_RECORDS: dict[str, Any] = (
    {
        "a string": lambda redis, key: redis.set(key, "x", ex=100),
        "a list": lambda redis, key: (
            redis.delete(key),
            redis.rpush(key, 1),
            redis.expire(key, 100),
        ),
        "no expiry": lambda redis, key: redis.persist(key),
        "no hash fields of ours": lambda redis, key: (
            redis.hset(key, "x", 1),
            redis.hdel(key, "1"),
        ),
        "the fields of an older layout": lambda redis, key: (
            redis.hset(key, mapping={"id": 1, "usuario": 7, "dispositivo": "d"}),
            redis.hdel(key, "1"),
        ),
        "an empty text": lambda redis, key: redis.hset(key, "1", ""),
        "a device alone": replaced("^.*:", ""),
        "no device": replaced(":.*", ""),
        "invalid UTF-8": lambda redis, key: redis.hset(
            key, "1", (redis.hget(key, "1") or b"") + b"\xff\xfe"
        ),
        "estado 2": changed(estado=2),
        "estado 01": changed(estado="01"),
        "id a fraction": changed(id="1.5"),
        "inicio infinite": changed(inicio="inf"),
        "inicio nan": changed(inicio="nan"),
        "ventana hexadecimal": changed(ventana="0x10"),
        "dates beyond any": changed(inicio="9" * 400, ventana="9" * 400),
        "dates beyond Redis's": changed(inicio=10**17, ventana=10**17),
        "usuario beyond any": changed(usuario="9" * 400),
        "two blanks": replaced(" ", "  "),
        "a blank before": replaced("^", " "),
        "a blank after": replaced(":", " :"),
        "a number more": replaced(" ", " 1 "),
        "a line more": replaced("^", "\n"),
        "index a string": lambda redis, key: redis.set(index_key(7), "x", ex=100),
        "index a list": lambda redis, key: (
            redis.delete(index_key(7)),
            redis.rpush(index_key(7), 1),
        ),
    }
    | {f"{field} missing": changed(**{field: ""}) for field in NUMBERS}
    | {f"{field} not a number": changed(**{field: "x1"}) for field in NUMBERS}
    | {f"{field} negative": changed(**{field: -1}) for field in NUMBERS}
)


@pytest.mark.parametrize("bad", BAD_RECORDS)
async def test_check_of_a_bad_record_finds_none_and_harms_no_other(
    redis: Redis,
    store: SessionStore,
    caplog: pytest.LogCaptureFixture,
    bad: str,
) -> None:
    """The one logged error names no token. Others of the same call are answered, whether they come
    before or after."""
    victim = age(redis, await store.create(7, "d"), 100)
    others = [await store.create(user, "d") for user in (NEIGHBOUR, 8, 9)]
    BAD_RECORDS[bad](redis, session_key(victim.Token_Sesion))
    order = [others[0], victim, *others[1:]]
    found = await asyncio.gather(*(store.find(sesion.Token_Sesion) for sesion in order))
    assert [seen and seen.ID_Usuario for seen in found] == [NEIGHBOUR, None, 8, 9]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("sesiones.store", logging.ERROR)
    message = record.getMessage()
    assert tokens.fingerprint(victim.Token_Sesion) in message
    assert victim.Token_Sesion[6:] not in message

    replies = redis.eval(
        lua("check"), 0, 1, MAX, *(session_key(sesion.Token_Sesion) for sesion in order)
    )
    users = [replies[at].partition(b":")[0].split(b" ")[5] for at in (0, 4, 6)]
    assert users == [b"2061", b"8", b"9"]


@pytest.mark.parametrize("score", ["inf", 4e18, 1e300, 10**10 + 0.5])
async def test_bad_index_entry_harms_no_other_user(
    redis: Redis,
    store: SessionStore,
    score: float,
) -> None:
    """An entry that no script of the store makes."""
    victim = age(redis, await store.create(7, "d"), 100)
    other = await store.create(8, "d")
    redis.zadd(index_key(7), {"x": score})
    _, found = await asyncio.gather(store.find(victim.Token_Sesion), store.find(other.Token_Sesion))
    assert found is not None


@pytest.mark.parametrize("bad", BAD_RECORDS)
async def test_bad_record_is_not_live_for_any_operation(
    redis: Redis, store: SessionStore, bad: str
) -> None:
    """Where the record is good and its index is not, ending works and the rest is refused."""
    victim = age(redis, await store.create(7, "d"), 100)
    other = await store.create(8, "d")
    token = victim.Token_Sesion
    BAD_RECORDS[bad](redis, session_key(token))
    later = victim._replace(Fecha_Expiracion=victim.Fecha_Expiracion + 10)
    if bad.startswith("index"):
        with pytest.raises(StoreUnavailable):
            await store.create(7, "d")
        with pytest.raises(StoreUnavailable):
            await store.update(later)
        assert redis.expiretime(session_key(token)) == victim.Fecha_Expiracion
        with pytest.raises(StoreUnavailable):
            await store.end_all(token, token)
        assert redis.exists(session_key(token))
        assert await store.end(token, token) == 1
        assert await store.find(token) is None
    else:
        await store.update(victim)
        await store.end(token, token)
    assert await store.end(other.Token_Sesion, token) in (0, Refusal.FORBIDDEN)
    assert await store.end(other.Token_Sesion, other.Token_Sesion) == 1


async def test_bad_record_is_no_caller(redis: Redis, store: SessionStore) -> None:
    victim, other = await store.create(7, "a"), await store.create(7, "b")
    write_record(redis, session_key(victim.Token_Sesion), usuario="")
    for end in (store.end, store.end_all):
        ended = await end(victim.Token_Sesion, other.Token_Sesion)
        assert ended is Refusal.UNAUTHENTICATED
    assert await store.update(victim) is None
    assert await store.end(other.Token_Sesion, victim.Token_Sesion) == 0
    # Revoking everything ends it as well: it is in the index.
    assert await store.end_all(other.Token_Sesion, other.Token_Sesion) == 2
    assert keys(redis) == ["sesiones:{eQ}:n"]
