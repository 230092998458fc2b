"""The subscription of a near-cache and its lease on real servers: connections that are killed,
stall, hang or lead elsewhere, permissions that lack, masters that are replaced."""

import asyncio
import itertools
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sesiones.metrics import (
    CACHE_ENTRIES,
    CACHE_LEASE_LOST,
    CACHE_LEASE_MISSING,
    Family,
    cell,
)
from sesiones.redis_client import subscription
from sesiones.redis_client.subscription import LEASE_SECONDS, RETRY_SECONDS
from sesiones.store import SessionStore
from tests.harness.faults import cut_off, hung
from tests.harness.ports import free_port
from tests.harness.records import slot_of
from tests.harness.redis_server import RedisCluster, RedisSentinels, RedisServer
from tests.harness.relay import Relay
from tests.harness.stores import available, open_store, replica_of

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

CACHED = {"cache_seconds": 60, "touch_seconds": 60}


@asynccontextmanager
async def cached_store(url: str, **options: Any) -> AsyncIterator[SessionStore]:
    async with open_store(url, **CACHED | options) as store:
        yield store


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server by its port, which the test may hang or reconfigure."""
    with RedisServer(port=str(free_port())) as server:
        yield server


def is_hit(store: SessionStore, token: str) -> bool:
    """Whether the store would answer from memory."""
    cache = store.near_cache()
    assert cache is not None
    return cache.get(token) is not None


def value(store: SessionStore, family: Family) -> float:
    return store.metrics.sums()[cell(family)]


async def comes_true(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def becomes_hit(store: SessionStore, token: str, seconds: float = 20) -> None:
    """Ask until the store answers from memory."""
    async with asyncio.timeout(seconds):
        while not is_hit(store, token):
            await available(lambda: store.find(token))
            await asyncio.sleep(0.01)


async def new_hit(store: SessionStore, user: int = 7) -> str:
    """A session that the store answers from memory."""
    token: str = (await available(lambda: store.create(user, "laptop"))).Token_Sesion
    await becomes_hit(store, token)
    return token


async def refused_in_time(store: SessionStore, token: str, since: float) -> float:
    """How long after ``since`` the last answer from memory came: less than the lease."""
    last = since
    while time.monotonic() < since + LEASE_SECONDS + 0.1:
        now = time.monotonic()
        if is_hit(store, token):
            last = now
        await asyncio.sleep(0.002)
    assert last - since < LEASE_SECONDS
    return last - since


async def test_message_removes_the_answer(server: RedisServer) -> None:
    async with cached_store(server.url) as store, open_store(server.url) as other:
        token = await new_hit(store)
        assert await other.end(token, token) == 1
        await comes_true(lambda: not is_hit(store, token), LEASE_SECONDS / 2)
        assert await store.find(token) is None


async def test_killed_subscription_ends_its_lease(server: RedisServer) -> None:
    async with cached_store(server.url) as store, open_store(server.url) as other:
        token, kept = await new_hit(store), await new_hit(store, 8)
        with server.client() as redis:
            assert redis.client_kill_filter(_type="pubsub") == 1
        assert await other.end(token, token) == 1
        await refused_in_time(store, token, time.monotonic())
        await becomes_hit(store, kept)
        assert await store.find(token) is None
        assert value(store, CACHE_LEASE_LOST) == 1
        assert value(store, CACHE_LEASE_MISSING) == 0
        assert value(store, CACHE_ENTRIES) >= 1
    assert value(store, CACHE_ENTRIES) == 0


async def test_subscription_lost_before_its_proof_begins_again_at_once(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "LEASE_SECONDS", 60)
    lost = 0

    def new_filter() -> Callable[[bytes], bytes | None]:
        def passed(piece: bytes) -> bytes | None:
            nonlocal lost
            if lost < 2 and b"\r\nproof " in piece:
                lost += 1
                return None
            return piece

        return passed

    with Relay(server.port, new_filter) as relay:
        async with cached_store(f"redis://127.0.0.1:{relay.port}") as store:
            await new_hit(store)
    assert lost == 2


class Muted:
    """Makes the filters of a relay: while ``silent``, it swallows what a subscription receives."""

    def __init__(self) -> None:
        self.silent = False

    def __call__(self) -> Callable[[bytes], bytes]:
        subscribed = False

        def passed(piece: bytes) -> bytes:
            nonlocal subscribed
            subscribed = subscribed or b"\r\nsubscribe\r\n" in piece
            return b"" if subscribed and self.silent else piece

        return passed


async def test_subscription_that_loses_all_bytes_has_no_lease(server: RedisServer) -> None:
    muted = Muted()
    with Relay(server.port, muted) as relay:
        url = f"redis://127.0.0.1:{relay.port}"
        async with cached_store(url) as store, open_store(server.url) as other:
            token, kept = await new_hit(store), await new_hit(store, 8)
            muted.silent = True
            assert await other.end(token, token) == 1
            lag = await refused_in_time(store, token, time.monotonic())
            assert lag > 0  # the message was swallowed: it is the lease that has ended
            assert not is_hit(store, kept)
            muted.silent = False
            await becomes_hit(store, kept)
            assert await store.find(token) is None


async def test_server_that_hangs_ends_its_lease(server: RedisServer) -> None:
    async with cached_store(server.url, timeout_seconds=0.25) as store:
        token = await new_hit(store)
        with hung(server):
            await refused_in_time(store, token, time.monotonic())
        await becomes_hit(store, token)


async def test_master_that_becomes_a_replica_ends_its_lease(server: RedisServer) -> None:
    """Its connections stay open, and no check asks it, because each is answered from memory."""
    async with cached_store(server.url) as store:
        token = await new_hit(store)
        with cut_off(server):
            await refused_in_time(store, token, time.monotonic())
        await becomes_hit(store, token)


def switching(relay: Relay, later: int) -> None:
    """The first connection leads to the relay's target, every later one to the other port."""
    number = itertools.count()

    def behave(client: socket.socket) -> None:
        relay.pass_on(client, later if next(number) else None)

    relay.become(behave)


@pytest.mark.parametrize(
    "kind", [pytest.param("another server", marks=pytest.mark.slow), "a replica"]
)
async def test_subscription_that_leads_elsewhere_has_no_lease(
    server: RedisServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        (
            RedisServer(port=str(free_port())) if kind == "another server" else replica_of(server)
        ) as elsewhere,
        Relay(server.port) as relay,
    ):
        switching(relay, elsewhere.port)
        async with cached_store(f"redis://127.0.0.1:{relay.port}") as store:
            token = (await store.create(7, "laptop")).Token_Sesion
            deadline = time.monotonic() + LEASE_SECONDS + 3 * RETRY_SECONDS
            while time.monotonic() < deadline:
                assert (await store.find(token)) is not None
                assert not is_hit(store, token)
                await asyncio.sleep(0.01)
            assert relay.connections > 2
            assert len(complaints(caplog)) == 1


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "lacking",
    [
        "publish",
        pytest.param("subscribe", marks=pytest.mark.slow),
        pytest.param("the channel", marks=pytest.mark.slow),
    ],
)
async def test_without_permission_every_check_asks_redis(
    server: RedisServer, lacking: str, caplog: pytest.LogCaptureFixture
) -> None:
    with server.client() as redis:
        redis.acl_setuser(
            "ana",
            enabled=True,
            passwords="+secret",
            keys="*",
            channels=[] if lacking == "the channel" else ["sesiones:invalidated"],
            commands=["+@all"] + ([] if lacking == "the channel" else [f"-{lacking}"]),
        )
    url = f"redis://ana:secret@127.0.0.1:{server.port}"
    async with cached_store(url) as store:
        token = (await store.create(7, "laptop")).Token_Sesion
        other = (await store.create(7, "phone")).Token_Sesion
        deadline = time.monotonic() + 5 * RETRY_SECONDS
        while time.monotonic() < deadline:
            assert (await store.find(token)) is not None
            assert not is_hit(store, token)
            await asyncio.sleep(0.01)
        cache = store.near_cache()
        assert cache is not None
        assert len(cache) == 0
        assert await store.end(token, other) == 1
        assert await store.find(other) is None
        (line,) = complaints(caplog)
        assert line.startswith("the cache asks Redis about every check: ")
        with server.client() as redis:
            redis.acl_setuser(
                "ana", enabled=True, commands=["+@all"], channels=["sesiones:invalidated"]
            )
        await becomes_hit(store, token)


@pytest.mark.parametrize("form", ["unix://{path}", "redis://ana:secret@127.0.0.1:{port}/3"])
async def test_url_of_any_form_has_a_subscription(server: RedisServer, form: str) -> None:
    with server.client() as redis:
        redis.acl_setuser(
            "ana", enabled=True, passwords="+secret", keys="*", channels="*", commands=["+@all"]
        )
    url = form.format(path=server.socket, port=server.port)
    async with cached_store(url) as store, open_store(url) as other:
        token = await new_hit(store)
        assert await other.end(token, token) == 1
        await refused_in_time(store, token, time.monotonic())


async def test_closed_store_leaves_no_connection_and_no_task(
    server: RedisServer, no_complaint: list[dict[str, Any]]
) -> None:
    before = asyncio.all_tasks()
    for closes_at_once in (True, False, True):
        store = open_store(server.url, **CACHED)
        token = (await store.create(7, "laptop")).Token_Sesion
        if not closes_at_once:
            await becomes_hit(store, token)
        await store.aclose()
        assert not is_hit(store, token)
    await comes_true(lambda: asyncio.all_tasks() == before)
    with server.client() as redis:
        await comes_true(lambda: len(redis.client_list()) == 1)


@pytest.mark.slow
@pytest.mark.sentinel
async def test_new_master_of_sentinel_gets_the_subscription() -> None:
    with RedisSentinels(1) as redis:
        async with (
            cached_store(redis.url, timeout_seconds=0.25) as store,
            open_store(redis.url, timeout_seconds=0.25) as other,
        ):
            token, kept = await new_hit(store), await new_hit(store, 8)
            (old,) = redis.named()
            await comes_true(lambda: redis.replicated(old))
            await asyncio.to_thread(redis.servers[old].stop, signal.SIGKILL)
            await refused_in_time(store, token, time.monotonic())
            assert await available(lambda: other.end(token, token)) == 1
            await refused_in_time(store, token, time.monotonic())
            await becomes_hit(store, kept)
            assert await other.end(kept, kept) == 1
            await refused_in_time(store, kept, time.monotonic())


def user_of(cluster: RedisCluster, port: int) -> int:
    """A user whose slot the node has."""
    return next(user for user in itertools.count() if cluster.owner(slot_of(user)) == port)


@pytest.mark.slow
@pytest.mark.cluster
async def test_each_master_of_a_cluster_has_a_subscription_and_no_replica(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sesiones.redis_client.cluster.REFRESH_SECONDS_MAX", 0.15)
    with RedisCluster(3, 3) as cluster:
        async with cached_store(cluster.url) as store, open_store(cluster.url) as other:
            hits = [await new_hit(store, user_of(cluster, port)) for port in cluster.master_ports]
            await asyncio.sleep(1)  # replicas, too, are asked for the slot map meanwhile
            assert all(is_hit(store, token) for token in hits)
            assert complaints(caplog) == []
            for port, client in cluster.clients.items():
                subscribed = [c for c in client.client_list() if c["sub"] != "0"]
                assert len(subscribed) == (port in cluster.master_ports)
            for token in hits:
                assert await other.end(token, token) == 1
                await refused_in_time(store, token, time.monotonic())


@pytest.mark.cluster
async def test_slot_that_moves_loses_its_answers(cluster: RedisCluster) -> None:
    source, target, _ = cluster.master_ports
    user = user_of(cluster, source)
    async with cached_store(cluster.url) as store, open_store(cluster.url) as other:
        token = await new_hit(store, user)
        slot, call = slot_of(user), asyncio.to_thread
        await call(cluster.begin_move, slot, source, target)
        keys = await call(cluster.run, source, "CLUSTER", "GETKEYSINSLOT", slot, 100)
        await call(cluster.move_keys, source, target, *keys)
        await call(cluster.end_move, slot, source, target)
        assert await available(lambda: other.end(token, token)) == 1
        await refused_in_time(store, token, time.monotonic())
        again = await new_hit(store, user)
        assert (await store.find(again, fresh=True)) is not None
        await call(cluster.begin_move, slot, target, source)
        keys = await call(cluster.run, target, "CLUSTER", "GETKEYSINSLOT", slot, 100)
        await call(cluster.move_keys, target, source, *keys)
        await call(cluster.end_move, slot, target, source)
        # A check that Redis is asked for finds out that the slot has moved.
        assert (await available(lambda: store.find(again, fresh=True))) is not None
        await becomes_hit(store, again)


@pytest.mark.slow
@pytest.mark.cluster
async def test_killed_node_ends_the_lease_on_its_answers_alone() -> None:
    with RedisCluster(3) as cluster:
        async with cached_store(cluster.url, timeout_seconds=0.25) as store:
            dead, alive, _ = cluster.master_ports
            lost, kept = [await new_hit(store, user_of(cluster, port)) for port in (dead, alive)]
            await asyncio.to_thread(cluster.servers[dead].stop, signal.SIGKILL)
            await refused_in_time(store, lost, time.monotonic())
            assert is_hit(store, kept) or await store.find(kept) is not None
