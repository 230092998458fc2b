"""A session that a node has ended stays ended, whatever the Redis that takes over knows of it: the
node refuses it at once, and ends it there again. What was made since then stays."""

import asyncio
import contextlib
import logging
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from sesiones import tokens
from sesiones.sesion import LimitReached, Login, Refusal, Sesion, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.metrics import counted
from tests.harness.records import index_key, session_key, slot_of
from tests.harness.redis_server import RedisCluster, RedisSentinels, RedisServer
from tests.harness.service import comes_true
from tests.harness.stores import available, open_store

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

AGAIN_SECONDS = 2
"""In which what came back has to go, on a busy machine."""


@asynccontextmanager
async def stores_at(
    url: str, number: int = 2, timeout_seconds: float = 0.25, **options: Any
) -> AsyncIterator[list[SessionStore]]:
    """The stores of several nodes, of which the first has the options."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                open_store(url, timeout_seconds=timeout_seconds, **({} if index else options))
            )
            for index in range(number)
        ]


async def goes(store: SessionStore, *sesiones: Sesion, seconds: float = AGAIN_SECONDS) -> None:
    """Wait until another node refuses the sessions, too."""
    deadline = time.monotonic() + seconds
    for sesion in sesiones:
        while await available(partial(store.find, sesion.Token_Sesion)) is not None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


# What a server that lost its last writes looks like, on one that did not.


class Past:
    """The keys of a server as they were, to be brought back: then it has lost its last writes."""

    def __init__(self, redis: "Redis") -> None:
        self.redis = redis
        self.keys = {key: (redis.dump(key), redis.pttl(key)) for key in redis.scan_iter()}

    def bring_back(self) -> None:
        for key, (value, ttl) in self.keys.items():
            assert value is not None
            self.redis.restore(key, max(0, ttl), value, replace=True)

    def disconnect(self) -> None:
        self.redis.client_kill_filter(_type="normal", skipme=True)


@pytest.fixture
def own() -> Iterator["Redis"]:
    """A client of a server of the test's own."""
    with RedisServer() as server, server.client() as redis:
        yield redis


def url_of(redis: "Redis") -> str:
    return f"unix://{redis.connection_pool.connection_kwargs['path']}"


async def test_sessions_ended_in_any_way_stay_ended_after_lost_writes(
    own: "Redis", caplog: pytest.LogCaptureFixture
) -> None:
    """By a logout, a logout of all, the limit, an operator, the owner's list or another login;
    whether the caller waits or not."""
    caplog.set_level(logging.INFO)
    async with stores_at(url_of(own), max_per_user=4) as (node, other):
        caller, logged_out, left = [await node.create(7, name) for name in "abc"]
        all_of_8 = [await node.create(8, name) for name in "abc"]
        of_9 = {s.Token_Sesion: s for s in [await node.create(9, name) for name in "abcd"]}
        of_operator = await node.create(10, "laptop")
        live = await other.create(11, "laptop")
        owner, by_number, *by_others = [await node.create(12, name) for name in "abcd"]
        revoked = await node.create(13, "laptop")
        previous, substituted, *closed = [await node.create(14, name) for name in "abcd"]
        elsewhere, neighbour = await node.create(15, "laptop"), await node.create(2061, "laptop")
        past = Past(own)

        assert await node.end(caller.Token_Sesion, logged_out.Token_Sesion) == 1
        leaving = asyncio.create_task(node.end(caller.Token_Sesion, left.Token_Sesion))
        await asyncio.sleep(0)  # it is sent
        leaving.cancel()
        assert await node.end_all(all_of_8[0].Token_Sesion, "") == 3
        await node.create(9, "one more")
        (over_limit,) = [s for s in of_9.values() if not own.exists(session_key(s.Token_Sesion))]
        assert await node.end_user(10, of_operator.ID_Sesion) == 1
        assert await node.end_one(owner.Token_Sesion, by_number.ID_Sesion) == 1
        assert await node.end_others(owner.Token_Sesion) == 2
        await node.revoke(revoked.Token_Sesion)
        replacing = Login(Token_Anterior=previous.Token_Sesion, Sustituye=substituted.ID_Sesion)
        await node.create(14, "new", replacing)
        await node.create(14, "newer", Login(Cerrar_Otras=1))
        for foreign in elsewhere, neighbour:
            login = Login(Token_Anterior=foreign.Token_Sesion)
            mine = await node.create(16 if foreign is elsewhere else 7, "mine", login)
            assert await node.end(mine.Token_Sesion, mine.Token_Sesion) == 1
        ended = [
            *(logged_out, left, *all_of_8, over_limit, of_operator, by_number, *by_others),
            *(revoked, previous, substituted, *closed, elsewhere, neighbour),
        ]
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert not own.exists(*(session_key(sesion.Token_Sesion) for sesion in ended))

        past.bring_back()
        new = await node.create(7, "since then")
        for sesion in ended:
            token = sesion.Token_Sesion
            assert await other.find(token) is not None
            assert await node.find(token) is None
            assert await node.update(sesion) is None
            assert await node.end(token, token) is Refusal.UNAUTHENTICATED
            assert await node.end_all(token, token) is Refusal.UNAUTHENTICATED
            assert await node.end_others(token) is Refusal.UNAUTHENTICATED
            assert await node.end_one(token, sesion.ID_Sesion) is Refusal.UNAUTHENTICATED
            assert await node.list_sessions(token) is None
            listed = await node.sessions(sesion.ID_Usuario)
            assert sesion.ID_Sesion not in {each.ID_Sesion for each in listed}
        past.disconnect()
        await goes(other, *ended)
        assert not own.exists(*(session_key(sesion.Token_Sesion) for sesion in ended))
        for sesion in live, caller, new, owner:
            for store in node, other:
                assert await store.find(sesion.Token_Sesion) is not None
        assert not own.exists(index_key(8), index_key(10), index_key(13), index_key(15))
        assert (own.zcard(index_key(7)), own.zcard(index_key(9))) == (2, 3)
        assert own.zcard(index_key(12)) == 1
        back = len(ended)
        assert counted(node.metrics)["sesiones_sessions_ended_total['failover']"] == back
        assert sum(line.endswith(": failover") for line in caplog.messages) == back
        assert f"{back} sessions that had ended were back, and have been ended" in caplog.messages


@pytest.mark.parametrize("allowed", [1, 2])
async def test_session_that_came_back_does_not_count_at_the_limit(
    own: "Redis", allowed: int
) -> None:
    """It makes room, and a refusal does not list it."""
    async with stores_at(url_of(own), 1, max_per_user=2, at_limit="refuse") as (node,):
        ended, live = [await node.create(7, name) for name in "ab"]
        past = Past(own)
        assert await node.end(ended.Token_Sesion, ended.Token_Sesion) == 1
        past.bring_back()
        if allowed == 1:
            with pytest.raises(LimitReached) as refused:
                await node.create(7, "c", Login(Max_Sesiones=1))
            assert [each.ID_Sesion for each in refused.value.sessions] == [live.ID_Sesion]
        else:
            new = await node.create(7, "c")
            assert {s.ID_Sesion for s in await node.sessions(7)} == {live.ID_Sesion, new.ID_Sesion}
        assert not own.exists(session_key(ended.Token_Sesion))
        reasons = counted(node.metrics)
        assert reasons["sesiones_sessions_ended_total['logout']"] == 1
        assert reasons["sesiones_sessions_ended_total['failover']"] == 1


async def test_own_life_survives_a_failover(own: "Redis") -> None:
    """Of a session that another node, which knows no tombstone of it, uses on the new master."""
    async with stores_at(url_of(own)) as (node, other):
        sesion = await node.create(7, "d", Login(Ventana=50, Vida_Maxima=50))
        past = Past(own)
        own.flushall()
        past.bring_back()
        past.disconnect()
        found = await available(partial(other.find, sesion.Token_Sesion))
        assert found.Fecha_Expiracion == sesion.Fecha_Inicio + 50
        assert own.hget(session_key(sesion.Token_Sesion), "2") == b"50"


async def test_session_that_a_second_try_makes_again_lives(own: "Redis") -> None:
    """The session of the first try has ended in between."""
    async with stores_at(url_of(own)) as (node, other):
        token = tokens.make(7)
        await node._create(7, "laptop", token)
        assert await node.end(token, token) == 1
        await node._create(7, "laptop", token)
        for store in node, other:
            assert await store.find(token) is not None
        Past(own).disconnect()
        await asyncio.sleep(0.3)
        for store in node, other:
            assert await available(partial(store.find, token)) is not None


async def test_each_new_master_gets_every_tombstone(own: "Redis") -> None:
    """Those of sessions that ended meanwhile too; hundreds, of many users. Keys of another type on
    the server cost none of them."""
    async with stores_at(url_of(own), timeout_seconds=2) as (node, other):
        made = await asyncio.gather(*(node.create(user % 150, "laptop") for user in range(450)))
        past = Past(own)
        for part in made[:200], made[200:]:
            await asyncio.gather(*(node.end(s.Token_Sesion, s.Token_Sesion) for s in part))
            past.bring_back()
            own.set(session_key(made[0].Token_Sesion), "no hash")
            for user in range(0, 150, 50):
                own.set(index_key(user), "no sorted set")
            past.disconnect()
            keys = [session_key(sesion.Token_Sesion) for sesion in part]
            assert await asyncio.to_thread(comes_true, lambda k=keys: not own.exists(*k), 5)  # type: ignore[misc]
        await goes(other, *made[1:])
        assert own.keys("*:h:*") == []
        assert len(own.keys("*:u:*")) == 3


async def test_replay_waits_while_writes_are_refused(own: "Redis") -> None:
    """Checks answer meanwhile, and refuse the ended session. It is deleted once writes are back."""
    async with stores_at(url_of(own), touch_seconds=0) as (node, other):
        ended, live = [await node.create(7, name) for name in "ab"]
        past = Past(own)
        assert await node.end(ended.Token_Sesion, ended.Token_Sesion) == 1
        past.bring_back()
        own.config_set("min-replicas-to-write", 1)
        past.disconnect()
        for _ in range(3):
            assert await available(partial(node.find, live.Token_Sesion)) is not None
            assert await node.find(ended.Token_Sesion) is None
            await asyncio.sleep(0.1)
        assert await other.find(ended.Token_Sesion) is not None
        own.config_set("min-replicas-to-write", 0)
        await goes(other, ended)
        assert await other.find(live.Token_Sesion) is not None


async def test_replay_goes_on_after_every_task_of_the_loop_was_cancelled(own: "Redis") -> None:
    """A program may cancel all of its tasks and go on."""
    others = asyncio.all_tasks()
    async with stores_at(url_of(own), touch_seconds=0) as (node, other):
        ended = await node.create(7, "laptop")
        past = Past(own)
        assert await node.end(ended.Token_Sesion, ended.Token_Sesion) == 1
        past.bring_back()
        own.config_set("min-replicas-to-write", 1)
        past.disconnect()
        await asyncio.sleep(0.1)
        replaying = asyncio.all_tasks() - others
        assert replaying
        for task in replaying:
            task.cancel()
        await asyncio.sleep(0)
        own.config_set("min-replicas-to-write", 0)
        await goes(other, ended)


async def test_aclose_leaves_no_task(own: "Redis") -> None:
    tasks = asyncio.all_tasks()
    node = open_store(url_of(own), timeout_seconds=5)
    sesion = await node.create(7, "laptop")
    assert await node.end(sesion.Token_Sesion, sesion.Token_Sesion) == 1
    own.config_set("min-replicas-to-write", 1)
    Past(own).disconnect()
    await asyncio.sleep(0.1)
    assert asyncio.all_tasks() > tasks
    await node.aclose()
    assert asyncio.all_tasks() == tasks


async def test_restart_that_lost_the_last_writes_gets_the_tombstones(tmp_path: Path) -> None:
    """There is no request to the node meanwhile."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    with RedisServer(data, appendfsync="always") as server:
        async with stores_at(server.url) as (node, other):
            ended, live = [await node.create(7, name) for name in "ab"]
            shutil.copytree(data, copy)
            assert await node.end(ended.Token_Sesion, ended.Token_Sesion) == 1
            server.stop(signal.SIGKILL)
            shutil.rmtree(data)
            shutil.copytree(copy, data)
            server.start()
            await goes(other, ended)
            assert await other.find(live.Token_Sesion) is not None


# Replicas that take over.


def cut_off(master: "Redis", replica: RedisServer) -> None:
    """The replica has nothing of what is written from now on."""
    assert replica.process is not None
    replica.process.send_signal(signal.SIGSTOP)
    master.client_kill_filter(_type="replica")


async def end_and_fail_over(
    stores: list[SessionStore], user: int, master: RedisServer, replica: RedisServer, replicas: int
) -> None:
    """A session ends on the master alone, then the replica takes over."""
    node, other = stores
    with (
        master.client() as redis,
        replica.client() as successor,
    ):
        ended, also, live = [
            await available(partial(node.create, user, name)) for name in ("ended", "also", "live")
        ]
        mark = f"{{{tokens.user_bucket(user)}}}"
        await node.probe(1)  # it has the scripts: no call is made twice
        assert comes_true(lambda: redis.set(mark, 1, px=1) and redis.wait(1, 100) == 1, 5)
        cut_off(redis, replica)
        token = ended.Token_Sesion
        for each in ended, also:
            if replicas:
                with pytest.raises(StoreUnavailable, match="confirmed by 0 of 1"):
                    await node.end(live.Token_Sesion, each.Token_Sesion)
            else:
                assert await node.end(live.Token_Sesion, each.Token_Sesion) == 1
        assert await node.find(token) is None
        master.stop(signal.SIGKILL)
        assert replica.process is not None
        replica.process.send_signal(signal.SIGCONT)
        assert await asyncio.to_thread(comes_true, partial(is_master, successor), 20)
        assert await available(partial(node.find, token)) is None
        # Unconfirmed, for there is no replica any more, but there.
        new = await available(partial(other.create, user, "since then"))
        await goes(other, ended, also)
        assert not successor.exists(session_key(token))
        for sesion in live, new:
            assert await available(partial(node.find, sesion.Token_Sesion)) is not None


def is_master(redis: "Redis") -> bool:
    return bool(redis.info("replication")["role"] == "master")


@pytest.mark.sentinel
@pytest.mark.parametrize("replicas", [0, 1])
async def test_logout_survives_a_failover_by_sentinel(replicas: int) -> None:
    with RedisSentinels(replicas=1, sentinels=1) as redis:
        async with stores_at(redis.url, timeout_seconds=1, wait_replicas=replicas) as stores:
            master, replica = redis.servers.values()
            await end_and_fail_over(stores, 7, master, replica, replicas)


@pytest.mark.sentinel
async def test_stale_sentinel_does_not_name_the_master() -> None:
    """The stale Sentinel is asked first, and the master that it names is up. The others name
    another one."""
    with (
        RedisSentinels(replicas=0, sentinels=1) as stale,
        RedisSentinels(replicas=0, sentinels=3) as redis,
    ):
        hosts = ",".join(f"127.0.0.1:{port}" for port in (*stale.sentinels, *redis.sentinels))
        async with open_store(f"redis+sentinel://{hosts}/mymaster") as store:
            sesion = await available(partial(store.create, 7, "laptop"), 5)
        (master,) = redis.clients.values()
        assert master.exists(session_key(sesion.Token_Sesion))


@pytest.mark.cluster
@pytest.mark.slow
async def test_logout_survives_a_failover_of_a_cluster() -> None:
    """A session that ended in another shard stays ended, too."""
    with RedisCluster(3, 3) as cluster:
        first, second, _, replica, *_ = cluster.servers
        async with stores_at(cluster.url) as stores:
            ours, theirs = [user_of(cluster, port) for port in (first, second)]
            sesion = await available(partial(stores[0].create, theirs, "laptop"))
            assert await stores[0].end(sesion.Token_Sesion, sesion.Token_Sesion) == 1
            servers = cluster.servers[first], cluster.servers[replica]
            await end_and_fail_over(stores, ours, *servers, 0)
            assert await stores[1].find(sesion.Token_Sesion) is None


def user_of(cluster: RedisCluster, port: int) -> int:
    return next(user for user in range(999) if cluster.owner(slot_of(user)) == port)


@pytest.mark.cluster
async def test_replay_waits_for_a_slot_that_is_being_moved() -> None:
    """The replay is tried again until all keys of the slot are on one node."""
    with RedisCluster(2) as cluster:
        source, target = cluster.servers
        user = user_of(cluster, source)
        slot = slot_of(user)
        with Redis(port=source) as redis:
            async with stores_at(cluster.url) as (node, other):
                ended, live = [await available(partial(node.create, user, name)) for name in "ab"]
                past = Past(redis)
                assert await node.end(ended.Token_Sesion, ended.Token_Sesion) == 1
                past.bring_back()
                cluster.begin_move(slot, source, target)
                cluster.move_keys(source, target, index_key(user))
                past.disconnect()
                await asyncio.sleep(0.6)
                assert redis.exists(session_key(ended.Token_Sesion))
                keys = cluster.run(source, "CLUSTER", "GETKEYSINSLOT", slot, 100)
                cluster.move_keys(source, target, *keys)
                cluster.end_move(slot, source, target)
                await goes(other, ended)
                assert await other.find(live.Token_Sesion) is not None
                assert cluster.clients[target].zcard(index_key(user)) == 1
