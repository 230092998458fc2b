"""The store for synchronous code, in threads and in forked processes."""

import asyncio
import inspect
import multiprocessing
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from sesiones import Refusal, SessionStore, StoreUnavailable, SyncSessionStore, tokens
from tests.harness.redis_server import RedisServer
from tests.harness.service import comes_true
from tests.harness.stores import open_store


@pytest.fixture
def sync_store(redis_server: RedisServer, redis: "Redis") -> Iterator[SyncSessionStore]:
    with SyncSessionStore(open_store(redis_server.url)) as store:
        yield store


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_methods_return_what_those_of_the_store_do(sync_store: SyncSessionStore) -> None:
    one, two = sync_store.create(7, "laptop"), sync_store.create(7, "phone")
    found = sync_store.find(one.Token_Sesion)
    assert found is not None
    assert found.ID_Sesion == one.ID_Sesion
    assert sync_store.update(found) == found
    listed = sync_store.list_sessions(one.Token_Sesion)
    assert listed is not None
    assert len(listed) == len(sync_store.sessions(7)) == 2
    assert sync_store.end_one(one.Token_Sesion, two.ID_Sesion) == 1
    assert sync_store.end_others(one.Token_Sesion) == 0
    assert sync_store.end(tokens.make(7), one.Token_Sesion) is Refusal.UNAUTHENTICATED
    assert sync_store.end_all(one.Token_Sesion, one.Token_Sesion) == 1
    sync_store.revoke(one.Token_Sesion)
    assert sync_store.end_user(7) == 0


def test_signatures_are_those_of_the_store() -> None:
    for name in vars(SyncSessionStore):
        if not name.startswith("_") and name != "close":
            ours, stores = getattr(SyncSessionStore, name), getattr(SessionStore, name)
            assert inspect.signature(ours) == inspect.signature(stores)


def test_exceptions_are_raised_in_the_callers_thread(sync_store: SyncSessionStore) -> None:
    with pytest.raises(ValueError, match="Dispositivo"):
        sync_store.create(7, "")
    with (
        SyncSessionStore(SessionStore.from_url("redis://127.0.0.1:1")) as gone,
        pytest.raises(StoreUnavailable),
    ):
        gone.create(7, "laptop")


def test_exception_of_a_call_has_no_frames_of_other_callers() -> None:
    """The checks of one batch fail together."""
    together = threading.Barrier(16)

    def call(store: SyncSessionStore) -> list[str]:
        together.wait(10)
        with pytest.raises(StoreUnavailable) as raised:
            store.find(tokens.make(7))
        together.wait(10)
        return [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]

    with (
        SyncSessionStore(SessionStore.from_url("redis://127.0.0.1:1")) as store,
        ThreadPoolExecutor(16) as pool,
    ):
        for frames in pool.map(call, [store] * 16):
            assert frames.count("call") <= 2  # of the test and of the store


def test_threads_share_one_loop_and_one_connection(
    sync_store: SyncSessionStore, redis: "Redis"
) -> None:
    sessions = [sync_store.create(user, "laptop") for user in range(16)]
    connections = len(redis.client_list())

    def check(number: int) -> bool:
        asked = sessions[number % 16]
        found = sync_store.find(asked.Token_Sesion)
        return found is not None and found.ID_Sesion == asked.ID_Sesion

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(check, range(1000)))
    assert threads().count("sesiones") == 1
    assert len(redis.client_list()) == connections


def test_first_calls_at_once_start_one_thread(redis_server: RedisServer, redis: "Redis") -> None:
    for _ in range(20):
        together = threading.Barrier(8)

        def call(store: SyncSessionStore, together: threading.Barrier = together) -> None:
            together.wait(10)
            assert store.find(tokens.make(7)) is None

        with (
            SyncSessionStore(open_store(redis_server.url)) as store,
            ThreadPoolExecutor(8) as pool,
        ):
            for done in [pool.submit(call, store) for _ in range(8)]:
                done.result(10)
            assert threads().count("sesiones") == 1


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (threading, "_start_new_thread", RuntimeError("can't start new thread")),
        (asyncio, "new_event_loop", OSError(24, "Too many open files")),
    ],
)
def test_store_works_again_after_its_thread_could_not_start(
    sync_store: SyncSessionStore, module: object, name: str, error: Exception
) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def fail(*_: object) -> None:
            raise error

        patch.setattr(module, name, fail)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="does not start"):
                sync_store.create(7, "laptop")
    assert sync_store.create(7, "laptop").ID_Usuario == 7


def test_close_ends_the_thread_and_the_connection(
    redis_server: RedisServer, redis: "Redis"
) -> None:
    before = len(redis.client_list())
    store = SyncSessionStore(open_store(redis_server.url))
    store.close()  # nothing to do
    store.create(7, "laptop")
    assert "sesiones" in threads()
    store.close()
    assert "sesiones" not in threads()
    assert comes_true(lambda: len(redis.client_list()) == before, 5)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
def test_forked_process_has_a_loop_of_its_own(sync_store: SyncSessionStore) -> None:
    """As with a server that loads the application before it forks its workers."""
    token = sync_store.create(7, "laptop").Token_Sesion

    def work() -> None:
        assert sync_store.find(token) is not None
        sync_store.close()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert sync_store.find(token) is not None
