"""The store and its server: no token is on it, scripts are loaded again, a full memory and refused
writes cost no check, and one call may name keys of many slots."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from sesiones import tokens
from sesiones.sesion import Sesion, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.faults import Fault, misconf, noreplicas
from tests.harness.records import (
    MAX,
    NEIGHBOUR,
    age,
    counter_key,
    create_arguments,
    digest,
    index,
    index_key,
    keys,
    lua,
    now,
    session_key,
    state,
    write_record,
)
from tests.harness.redis_server import RedisCluster, RedisServer
from tests.harness.stores import Opener

pytestmark = pytest.mark.anyio


def data_directory(redis: Redis) -> Path:
    return Path(str(redis.config_get("dir")["dir"]))


def append_only_file(redis: Redis) -> bytes:
    return b"".join(file.read_bytes() for file in data_directory(redis).rglob("*.aof"))


async def test_token_is_nowhere_in_redis(open_more: Opener, redis: Redis) -> None:
    """Neither it nor its random part is in a command, a key, a value or the append-only file."""
    store = open_more(touch_seconds=0)
    with redis.monitor() as monitor:  # type: ignore[no-untyped-call]
        made = [await store.create(user, "el dispositivo") for user in (7, 7, 7, 8)]
        mine, theirs, kept, foreign = (sesion.Token_Sesion for sesion in made)
        await store.find(mine)
        await store.find(tokens.make(7))
        await store.update(made[0]._replace(Dispositivo="otro dispositivo"))
        for designated in (theirs, foreign, "no token"):
            await store.end(mine, designated)
        await store.end_all(mine, foreign)
        redis.echo("that was all")
        seen = bytearray()
        while b"that was all" not in seen:
            seen += str(monitor.next_command()).encode()
    for key in keys(redis):
        seen += key.encode() + (redis.dump(key) or b"")
    seen += str(state(redis)).encode()
    seen += append_only_file(redis)
    assert b"otro dispositivo" in seen
    assert digest(kept).encode() in seen
    for sesion in made:
        assert sesion.Token_Sesion[6:].encode() not in seen


async def test_only_counters_have_no_expiry(redis: Redis, store: SessionStore) -> None:
    made = [await store.create(user, "d") for user in (7, 7, 8, NEIGHBOUR)]
    for sesion in made:
        age(redis, sesion, 10)
        await store.find(sesion.Token_Sesion)
    await store.update(made[0]._replace(Fecha_Expiracion=made[0].Fecha_Inicio + 60))
    await store.end(made[1].Token_Sesion, made[1].Token_Sesion)
    lasting = {key for key, (_, expiry) in state(redis).items() if expiry == -1}
    assert lasting == {counter_key(7), counter_key(8)}


async def test_scripts_are_loaded_again_by_a_server_that_lost_them(
    redis: Redis, store: SessionStore
) -> None:
    """A server that was restarted or replaced has no scripts."""
    redis.script_flush()
    mine = await store.create(7, "d")
    redis.script_flush()
    assert await store.find(mine.Token_Sesion) is not None
    redis.script_flush()
    assert isinstance(await store.update(mine), Sesion)
    other = await store.create(7, "d")
    redis.script_flush()
    assert await store.end(mine.Token_Sesion, other.Token_Sesion) == 1
    redis.script_flush()
    assert await store.end(mine.Token_Sesion, tokens.make(8)) == 0
    redis.script_flush()
    assert await store.end_all(mine.Token_Sesion, "") == 1


async def test_full_memory_refuses_create_and_update_alone(
    open_more: Opener, own_server: RedisServer
) -> None:
    """Checks slide and logouts end as always, even where the scripts come anew; create and
    update are refused with nothing written."""
    store = open_more(own_server.url)
    with own_server.client() as redis:
        made = [await store.create(7, str(i)) for i in range(4)]
        sesion = age(redis, made[0], 100)
        redis.config_set("maxmemory", 1)
        for _ in range(2):
            found = await store.find(sesion.Token_Sesion)
            assert found is not None
            assert found.Ultima_Actividad >= sesion.Ultima_Actividad + 100
            assert index(redis, 7)[digest(sesion.Token_Sesion)] == found.Fecha_Expiracion
            redis.script_flush()
        before = state(redis)
        with pytest.raises(StoreUnavailable):
            await store.create(7, "d")
        with pytest.raises(StoreUnavailable):
            await store.update(made[1])
        assert state(redis) == before
        assert await store.end(sesion.Token_Sesion, made[1].Token_Sesion) == 1
        assert await store.end(sesion.Token_Sesion, tokens.make(8)) == 0
        assert await store.end_all(sesion.Token_Sesion, "") == 3
        assert await store.find(sesion.Token_Sesion) is None
        redis.config_set("maxmemory", 0)
        assert await store.find((await store.create(7, "d")).Token_Sesion) is not None


@pytest.mark.parametrize(("refuse", "reason"), [(noreplicas, "NOREPLICAS"), (misconf, "MISCONF")])
async def test_refused_writes_cost_no_check(
    open_more: Opener, own_server: RedisServer, refuse: Fault, reason: str
) -> None:
    """Checks answer without a slide. Everything else is refused, with nothing written."""
    store = open_more(own_server.url, touch_seconds=0)
    with own_server.client() as redis:
        mine, other = await store.create(7, "a"), await store.create(7, "b")
        inactive = await store.create(7, "c")
        await store.update(inactive._replace(Estado_Sesion=0))
        mine = age(redis, mine, 100)
        before = state(redis)
        with refuse(own_server):
            with pytest.raises(ResponseError, match=reason):
                redis.set("x", 1)
            tried = [mine.Token_Sesion, inactive.Token_Sesion, tokens.make(7)]
            found = await asyncio.gather(*(store.find(token) for token in tried))
            assert found == [mine, None, None]
            for refused in (
                store.create(7, "d"),
                store.update(mine),
                store.end(mine.Token_Sesion, other.Token_Sesion),
                store.end_all(mine.Token_Sesion, mine.Token_Sesion),
            ):
                with pytest.raises(StoreUnavailable, match=reason):
                    await refused
        assert state(redis) == before


@pytest.mark.cluster
def test_check_takes_keys_of_many_slots() -> None:
    """They are arguments of the script, as in its read-only twin: a flag of both allows that."""
    with RedisCluster(1) as cluster, Redis(port=cluster.master_ports[0]) as node:
        session_keys = []
        for user in range(300):
            token = tokens.make(user)
            declared = [session_key(token), index_key(user), counter_key(user)]
            node.eval(lua("create"), 3, *declared, *create_arguments(user, "d"))
            write_record(node, session_key(token), actividad=now(node) - 100)
            session_keys.append(session_key(token))
        assert len({key_slot(key.encode()) for key in session_keys}) > 250
        moment = now(node)
        for name in ("peek", "check"):
            replies: Any = node.eval(lua(name), 0, 1, MAX, *session_keys)
            *sessions, _, _, _ = replies
            fields = [text.partition(b":")[0].split(b" ") for text in sessions[::2]]
            assert [int(field[5]) for field in fields] == list(range(300))
        assert all(int(field[0]) + int(field[1]) >= moment for field in fields)
        without = lua("check").replace(",allow-cross-slot-keys", "")
        with pytest.raises(ResponseError, match="slot"):
            node.eval(without, 0, 1, MAX, *session_keys)
