"""One store in several event loops and threads: asyncio.run() again and again, Starlette's
TestClient, a loop in each thread. Connections belong to a loop; sessions and tombstones do not."""

import asyncio
import gc
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import uvloop
from redis import Redis
from redis.asyncio import ConnectionPool

from tests.harness.records import client_ids
from tests.harness.redis_server import RedisServer

with warnings.catch_warnings():  # it would rather have another HTTP library
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

from sesiones import tokens
from sesiones.clients.http import SessionClient
from sesiones.http.app import create_app
from sesiones.redis_client.single import Server
from sesiones.sesion import StoreUnavailable
from sesiones.settings import Settings
from sesiones.store import SessionStore, tombstones
from sesiones.store.near_cache import InvalidationTable, NearCache
from tests.harness.faults import hung
from tests.harness.service import Service, comes_true
from tests.harness.stores import KEY, available, open_store

Run = Callable[[Any], Any]


def asyncio_run(main: Any) -> Any:
    return asyncio.run(main)


def uvloop_run(main: Any) -> Any:
    return uvloop.run(main)


def bare_run(main: Any) -> Any:
    """Programs did so before asyncio.run(): nothing is cancelled or closed at the end."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


RUNS = pytest.mark.parametrize("run", [asyncio_run, uvloop_run, bare_run])


@pytest.fixture(autouse=True)
def emptied(redis: Redis) -> None:
    """Other tests leave keys of the wrong type for the same users."""


@pytest.fixture(autouse=True)
def no_complaint(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither a destroyed task nor an open socket is left for Python to complain of."""
    gc.freeze()  # to look through the objects of earlier tests would take half a second
    with warnings.catch_warnings():
        # A loop that is closed by hand closes no transport: asyncio says so.
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()
    gc.unfreeze()
    complaints = [r.getMessage() for r in caplog.records if r.name == "asyncio"]
    assert complaints == []


@RUNS
def test_store_is_usable_in_one_loop_after_another(redis_server: RedisServer, run: Run) -> None:
    store = open_store(redis_server.url, touch_seconds=60)
    made = [run(store.create(7, f"device {number}")) for number in range(3)]
    for sesion in made:
        assert run(store.find(sesion.Token_Sesion)).ID_Sesion == sesion.ID_Sesion
    assert run(store.update(made[0])) == made[0]
    assert run(store.end(made[0].Token_Sesion, made[1].Token_Sesion)) == 1
    assert run(store.find(made[1].Token_Sesion)) is None
    assert run(store.end_all(made[0].Token_Sesion, "")) >= 2
    assert run(store.sessions(7)) == []
    run(store.probe(5))


@pytest.mark.parametrize("run", [asyncio_run, uvloop_run])
def test_connections_are_closed_with_their_loop(redis_server: RedisServer, run: Run) -> None:
    with redis_server.client() as redis:
        before = client_ids(redis)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            store = open_store(redis_server.url, wait_replicas=0)
            for _ in range(20):
                run(store.create(7, "laptop"))
            gc.collect()
        assert comes_true(lambda: client_ids(redis) <= before, 2)
        assert store._loops.existing() == []


def test_store_is_usable_in_a_loop_of_each_thread(redis_server: RedisServer) -> None:
    """No call hangs."""
    store = open_store(redis_server.url, timeout_seconds=2)
    sesion = asyncio.run(store.create(7, "laptop"))
    found: list[Any] = []

    def work() -> None:
        for _ in range(5):
            found.append(asyncio.run(store.find(sesion.Token_Sesion)))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(16)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert [each and each.ID_Sesion for each in found] == [sesion.ID_Sesion] * 80


def test_threads_that_end_sessions_at_once_lose_no_tombstone(redis_server: RedisServer) -> None:
    store = open_store(redis_server.url)

    async def make() -> list[str]:
        made = await asyncio.gather(*(store.create(user, "laptop") for user in range(200)))
        return [sesion.Token_Sesion for sesion in made]

    made = asyncio.run(make())

    async def end(tokens: list[str]) -> int:
        ended = await asyncio.gather(*(store.end(token, token) for token in tokens))
        return sum(count for count in ended if isinstance(count, int))

    counts: list[int] = []
    parts = [made[start::8] for start in range(8)]
    threads = [
        threading.Thread(target=lambda part=part: counts.append(asyncio.run(end(part))))
        for part in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sum(counts) == 200
    assert all(store._keys.session(token) in store._tombstones for token in made)


@RUNS
def test_logout_of_one_loop_is_replayed_by_the_next(redis_server: RedisServer, run: Run) -> None:
    """Between the two loops the master may have been replaced."""
    store, other = open_store(redis_server.url), open_store(redis_server.url)
    with redis_server.client() as redis:
        sesion = asyncio.run(store.create(7, "laptop"))
        token = sesion.Token_Sesion
        key = store._keys.session(token)
        value, ttl = redis.dump(key), redis.pttl(key)
        assert value is not None
        assert run(store.end(token, token)) == 1
        redis.restore(key, ttl, value)

        async def later() -> None:
            assert await store.find(token) is None
            assert await asyncio.to_thread(comes_true, lambda: not redis.exists(key), 5)
            assert await other.find(token) is None

        asyncio.run(later())


@RUNS
def test_logout_of_a_loop_that_ended_long_ago_is_replayed_by_the_next(
    redis_server: RedisServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loop was there meanwhile to see a new master."""
    store = open_store(redis_server.url)
    with redis_server.client() as redis:
        token = run(store.create(7, "laptop")).Token_Sesion
        key = store._keys.session(token)
        value, ttl = redis.dump(key), redis.pttl(key)
        assert value is not None
        assert run(store.end(token, token)) == 1
        redis.restore(key, ttl, value)
        monkeypatch.setattr(tombstones, "TOMBSTONE_TTL_SECONDS", 0.2)
        time.sleep(0.4)

        async def later() -> None:
            assert await store.find(token) is None
            assert await asyncio.to_thread(comes_true, lambda: not redis.exists(key), 5)

        run(later())


@RUNS
# A loop that is closed by hand may leave a task that has not begun: Python says so.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_loop_that_ends_with_calls_in_flight_is_no_outage(
    deployment_url: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """None of its tasks is destroyed, either: no_complaint would fail."""
    leaving: list[asyncio.Task[Any]] = []

    async def leave() -> None:
        token = (await store.create(7, "laptop")).Token_Sesion
        calls: list[Coroutine[Any, Any, Any]] = [store.find(token) for _ in range(1000)]
        calls += [store.create(7, "phone"), store.end(token, token)]
        leaving[:] = map(asyncio.ensure_future, calls)
        for _ in range(3):
            await asyncio.sleep(0)
        if run is bare_run:  # which cancels nothing itself
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)

    async def close() -> None:
        found = [asyncio.ensure_future(store.find(tokens.make(7))) for _ in range(1000)]
        await asyncio.sleep(0)
        begun = time.monotonic()
        await store.aclose()
        answers = await asyncio.gather(*found, return_exceptions=True)
        assert time.monotonic() - begun < 2
        assert all(answer is None or isinstance(answer, StoreUnavailable) for answer in answers)

    first = open_store(deployment_url)  # a Cluster and Sentinels take a moment
    asyncio.run(available(partial(first.create, 7, "laptop")))
    caplog.clear()
    store = open_store(deployment_url)
    run(leave())
    assert all(task.done() for task in leaving)
    run(close())
    gc.collect()
    logged = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert logged == []


def test_second_loop_meets_the_timeout_and_no_loop_error() -> None:
    with RedisServer() as server:
        store = open_store(server.url, timeout_seconds=0.3)
        token = asyncio.run(store.create(7, "laptop")).Token_Sesion
        with hung(server):
            for _ in range(2):
                begun = time.monotonic()
                with pytest.raises(StoreUnavailable) as raised:
                    asyncio.run(store.find(token))
                assert time.monotonic() - begun < 1.5
                assert "loop" not in str(raised.value)
        assert asyncio.run(store.find(token)) is not None


@pytest.mark.parametrize("deployment_url", ["sentinel", "cluster"], indirect=True)
def test_sentinel_and_cluster_are_usable_in_one_loop_after_another(deployment_url: str) -> None:
    store = open_store(deployment_url)
    for run in asyncio_run, uvloop_run, asyncio_run:
        token = run(available(partial(store.create, 7, "laptop"))).Token_Sesion
        assert run(available(partial(store.find, token))) is not None


def test_test_client_of_starlette_uses_a_loop_for_each_request(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The test client has a loop for each request, and another for each lifespan."""
    caplog.set_level(logging.ERROR)
    environ = {"SESIONES_REDIS_URL": redis_server.url, "SESIONES_REDIS_TIMEOUT": "5"}
    app = create_app(Settings.read(environ, {}), open_without_key=True)
    client = TestClient(app)
    made = client.post("/sesiones", json={"ID_Usuario": 7, "Dispositivo": "laptop"}).json()
    headers = {"x-auth-token": made["Token_Sesion"]}
    for _ in range(3):
        assert client.get("/sesiones/self", headers=headers).json()["ID_Usuario"] == 7
    for _ in range(2):
        with TestClient(app) as within:
            for _ in range(2):
                assert within.get("/sesiones/self", headers=headers).status_code == 200
    assert client.get("/sesiones/self", headers=headers).status_code == 200


def test_aclose_ends_the_use_of_its_own_loop_alone(redis_server: RedisServer) -> None:
    store = open_store(redis_server.url)

    async def close() -> None:
        await store.create(7, "laptop")
        await store.aclose()
        with pytest.raises(StoreUnavailable):
            await store.create(7, "laptop")

    asyncio.run(close())
    assert asyncio.run(store.create(7, "laptop")).ID_Usuario == 7


@pytest.mark.parametrize("run", [asyncio_run, uvloop_run])
def test_generator_that_is_closed_with_its_loop_is_refused_and_leaves_no_connection(
    redis_server: RedisServer, redis: Redis, run: Run
) -> None:
    """asyncio.run() closes the store's connections together with the generators that are left, in
    any order."""
    store = open_store(redis_server.url)
    outcomes: list[object] = []
    generators: list[AsyncGenerator[None, None]] = []

    async def session(token: str) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            for _ in range(20):  # until the store is closed
                await asyncio.sleep(0)
            try:
                outcomes.append(await store.end(token, token))
            except StoreUnavailable:
                outcomes.append(StoreUnavailable)

    async def leave() -> None:
        token = (await store.create(7, "laptop")).Token_Sesion
        generators.append(session(token))
        await anext(generators[-1])

    before = client_ids(redis)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for _ in range(4):
            run(leave())
    assert outcomes == [StoreUnavailable] * 4
    assert comes_true(lambda: client_ids(redis) <= before, 2)
    assert store._loops.existing() == []


def test_process_without_a_thread_for_the_lookup_of_a_name_is_unavailable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in a function of atexit: threads of executors have ended by then."""
    store = SessionStore.from_url("redis://localhost:1")

    async def ask() -> None:
        executor = ThreadPoolExecutor()
        executor.shutdown()
        asyncio.get_running_loop().set_default_executor(executor)
        for call in store.find(tokens.make(7)), store.create(7, "laptop"):
            with pytest.raises(StoreUnavailable, match="localhost cannot be resolved"):
                await call

    asyncio.run(ask())
    assert [r for r in caplog.records if r.exc_info] == []


# The client of a service


def create_at(service: Service) -> str:
    """The token of a new session."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    made = service.request("POST", "/sesiones", headers, b'{"ID_Usuario": 7, "Dispositivo": "d"}')
    token: str = made.json()["Token_Sesion"]
    return token


@RUNS
def test_client_is_usable_in_one_loop_after_another(service: Service, run: Run) -> None:
    token = create_at(service)
    client = SessionClient(f"http://127.0.0.1:{service.port}", timeout_seconds=5)
    for _ in range(3):
        assert run(client.find(token)).ID_Usuario == 7


@pytest.mark.parametrize("run", [asyncio_run, uvloop_run])
def test_connections_of_the_client_are_closed_with_their_loop(service: Service, run: Run) -> None:
    token = create_at(service)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        client = SessionClient(f"http://127.0.0.1:{service.port}", timeout_seconds=5)
        for _ in range(5):
            run(client.find(token))
        gc.collect()
    assert client._loops.existing() == []


def test_client_is_usable_in_a_loop_of_each_thread(service: Service) -> None:
    """Each thread keeps its loop for several calls, beside the others."""
    token = create_at(service)
    client = SessionClient(f"http://127.0.0.1:{service.port}", timeout_seconds=5)
    found: list[Any] = []

    async def work() -> None:
        for _ in range(5):
            found.extend(await asyncio.gather(*(client.find(token) for _ in range(4))))

    threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [each and each.ID_Usuario for each in found] == [7] * 160


def test_aclose_of_the_client_ends_the_use_of_its_own_loop_alone(service: Service) -> None:
    token = create_at(service)
    client = SessionClient(f"http://127.0.0.1:{service.port}", timeout_seconds=5)

    async def close() -> None:
        await client.find(token)
        await client.aclose()
        with pytest.raises(StoreUnavailable):
            await client.find(token)

    asyncio.run(close())
    assert asyncio.run(client.find(token)) is not None


def test_client_reads_a_reply_that_arrived_while_its_process_was_paused(service: Service) -> None:
    """The reply comes while the event loop, like a paused process, reads nothing."""
    token = create_at(service)
    client = SessionClient(f"http://127.0.0.1:{service.port}", timeout_seconds=0.5)

    async def pause() -> None:
        assert await client.find(token) is not None  # the connection is open now
        asked = asyncio.create_task(client.find(token))
        for _ in range(10):  # until the request has been sent
            await asyncio.sleep(0)
        time.sleep(1)  # noqa: ASYNC251
        assert await asked is not None

    for run in asyncio_run, uvloop_run:
        run(pause())


def test_last_answered_sent_at_may_be_asked_in_another_thread() -> None:
    """The store asks whenever it ends a session, and before it queues tombstones for replay."""
    server = Server(ConnectionPool(), 0.25)
    connections: set[Any] = server._open_connections
    connections.add(Mock(last_answered_sent_at=1.0))
    over = threading.Event()

    def open_and_lose() -> None:
        other = Mock(last_answered_sent_at=2.0)
        while not over.is_set():
            connections.add(other)
            connections.discard(other)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=open_and_lose)
    try:
        sys.setswitchinterval(1e-6)
        thread.start()
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            assert server.last_answered_sent_at("aa") == 1.0
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(interval)


# The near-cache: entries and leases belong to a loop, and invalidations to the store.


async def becomes_hit(store: SessionStore, token: str) -> NearCache:
    """The cache of the running loop, once it has the session of the token."""
    cache = store.near_cache()
    assert cache is not None
    async with asyncio.timeout(20):
        while cache.get(token) is None:
            assert await store.find(token) is not None
            await asyncio.sleep(0.01)
    return cache


@pytest.mark.parametrize("run", [asyncio_run, uvloop_run])
def test_loop_that_ends_leaves_no_subscription_and_no_answer(
    redis_server: RedisServer, redis: Redis, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(redis_server.url, cache_seconds=60, touch_seconds=60)
    caches, before = [], client_ids(redis)

    async def use() -> str:
        token = (await store.create(7, "laptop")).Token_Sesion
        caches.append(await becomes_hit(store, token))
        return token

    tokens_ = [run(use()) for _ in range(3)]
    assert len({id(cache) for cache in caches}) == 3
    assert all(cache.get(token) is None for cache, token in zip(caches, tokens_, strict=True))
    assert comes_true(lambda: client_ids(redis) <= before, 5)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_ending_in_one_loop_is_seen_at_once_in_another(
    redis_server: RedisServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the message: the loops of a store tell each other."""
    monkeypatch.setattr(NearCache, "message", lambda *_: None)
    store = open_store(redis_server.url, cache_seconds=60, touch_seconds=60)
    asked, ended = threading.Event(), threading.Event()
    tokens_: list[str] = []

    async def check() -> None:
        for each in range(5):
            token = (await store.create(each, "laptop")).Token_Sesion
            cache = await becomes_hit(store, token)
            ended.clear()
            tokens_.append(token)
            asked.set()
            await asyncio.to_thread(ended.wait, 20)
            assert cache.get(token) is None
            assert await store.find(token) is None
        await store.aclose()

    async def end() -> None:
        for _ in range(5):
            await asyncio.to_thread(asked.wait, 20)
            asked.clear()
            assert await store.end(tokens_[-1], tokens_[-1]) == 1
            ended.set()
        await store.aclose()

    ending = threading.Thread(target=asyncio.run, args=(end(),))
    ending.start()
    asyncio.run(check())
    ending.join()


def test_table_that_is_collected_leaves_no_file_descriptor() -> None:
    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    InvalidationTable()
    before = descriptors()
    for _ in range(20):
        InvalidationTable()
    assert descriptors() == before
