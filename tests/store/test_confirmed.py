"""Confirmed writes, on a master and its replica: a write succeeds once the replica has it, and no
check waits for that. After a failover: test_failover.py."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from sesiones import tokens
from sesiones.redis_client import connect, connection
from sesiones.redis_client.single import UnconfirmedError
from sesiones.sesion import Login, Sesion, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.faults import hung
from tests.harness.metrics import counted
from tests.harness.ports import free_port
from tests.harness.records import record, session_key
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, comes_true
from tests.harness.stores import available, open_store, replica_of

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

TIMEOUT_SECONDS = 0.25
STALLED_SECONDS = TIMEOUT_SECONDS + 0.5  # what a busy machine may add


@dataclass
class Pair:
    """A master and its replica."""

    master: RedisServer
    replica: RedisServer
    redis: "Redis"
    """A client of the master."""

    @property
    def url(self) -> str:
        return self.master.url

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """The replica hangs, its connection is open."""
        try:
            with hung(self.replica):
                yield
        finally:
            self.redis.set("all of it", 1, px=1)
            assert comes_true(lambda: self.redis.wait(1, 100) == 1, 10)

    def calls(self, command: str) -> int:
        return int(self.redis.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with (
        RedisServer(port=str(free_port())) as master,
        replica_of(master) as replica,
        master.client() as redis,
    ):
        yield Pair(master, replica, redis)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica has a second to confirm, since the machine may be busy."""
    monkeypatch.setattr(connection, "CONFIRMED_SECONDS", 1.0)


@asynccontextmanager
async def store_with(
    pair: Pair, replicas: int = 1, timeout_seconds: float = 5
) -> AsyncIterator[SessionStore]:
    async with open_store(
        pair.url, timeout_seconds=timeout_seconds, wait_replicas=replicas
    ) as store:
        await store.probe(5)  # it has the scripts: no call is made twice
        yield store


async def unconfirmed(ask: Awaitable[Any], count: str = "0 of 1") -> None:
    """It fails, in time. (Where nothing else happens, Redis looks at its clock but ten times a
    second, so that 0.1 s may be 0.2.)"""
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable, match=rf"confirmed by {count} replicas in 0\.1 s"):
        await ask
    assert time.monotonic() - begun < STALLED_SECONDS


@pytest.mark.usefixtures("patient")
async def test_replica_has_what_is_acknowledged(pair: Pair) -> None:
    """The replica has it as soon as the store has answered."""
    with pair.replica.client() as replica:
        async with store_with(pair) as store:
            for number in range(50):
                sesion = await store.create(7, "laptop")
                key = session_key(sesion.Token_Sesion)
                assert replica.exists(key)
                assert await store.update(sesion._replace(Dispositivo=f"device {number}"))
                assert record(replica, key)["dispositivo"] == f"device {number}"
                assert await store.end(sesion.Token_Sesion, sesion.Token_Sesion) == 1
                assert not replica.exists(key)


@pytest.mark.usefixtures("patient")
async def test_replica_has_each_ending_that_is_acknowledged(pair: Pair) -> None:
    with pair.replica.client() as replica:
        async with store_with(pair) as store:
            mine, *others = [await store.create(7, f"d{i}") for i in range(10)]
            foreign = await store.create(8, "d")
            one, two, three, previous, substituted, *rest = others
            caller = mine.Token_Sesion

            def log_in(**fields: Any) -> Callable[[], Awaitable[Any]]:
                return lambda: store.create(7, "e", Login(**fields))

            endings: list[tuple[Callable[[], Awaitable[Any]], list[Sesion]]] = [
                (lambda: store.end_one(caller, one.ID_Sesion), [one]),
                (lambda: store.revoke(two.Token_Sesion), [two]),
                (lambda: store.end_user(7, three.ID_Sesion), [three]),
                (log_in(Token_Anterior=previous.Token_Sesion), [previous]),
                (log_in(Token_Anterior=foreign.Token_Sesion), [foreign]),
                (log_in(Sustituye=substituted.ID_Sesion), [substituted]),
                (lambda: store.end_others(caller), rest),
                (log_in(Cerrar_Otras=1), [mine]),
            ]
            for end, ended in endings:
                assert replica.exists(*(session_key(s.Token_Sesion) for s in ended)) == len(ended)
                await end()
                assert not replica.exists(*(session_key(s.Token_Sesion) for s in ended))


async def test_writes_are_unavailable_and_seen_while_the_replica_stalls(pair: Pair) -> None:
    async with store_with(pair) as store, store_with(pair, 0) as other:
        sessions = [await available(lambda: store.create(7, "laptop")) for _ in range(4)]
        one, two, three, four = [sesion.Token_Sesion for sesion in sessions]
        managed = [await available(lambda: store.create(8, "laptop")) for _ in range(6)]
        with pair.stalled():
            await unconfirmed(store.create(7, "phone"))
            await unconfirmed(store.update(sessions[0]._replace(Dispositivo="phone")))
            await unconfirmed(store.end(one, two))
            # What happened is seen at once. It may be lost, and is not said to be safe.
            assert await store.find(two) is None
            assert await other.find(two) is None
            assert await store.find(three) is not None
            await unconfirmed(store.end_all(four, four))
            assert await store.find(one) is None
            mine, *others = [sesion.Token_Sesion for sesion in managed]
            await unconfirmed(store.end_one(mine, managed[1].ID_Sesion))
            await unconfirmed(store.revoke(others[1]))
            await unconfirmed(store.end_user(8, managed[3].ID_Sesion))
            await unconfirmed(store.create(8, "phone", Login(Token_Anterior=others[3])))
            await unconfirmed(store.end_others(mine))
            for token in others:
                assert await store.find(token) is None
                assert await other.find(token) is None
            assert [each.ID_Sesion for each in await store.sessions(8)] == [managed[0].ID_Sesion]
            assert counted(store.metrics)["sesiones_redis_errors_total['unconfirmed']"] == 9
            assert (await other.create(7, "laptop")).ID_Usuario == 7
        assert (await available(lambda: store.create(7, "laptop"))).ID_Usuario == 7


async def test_operation_that_changes_nothing_is_confirmed_by_a_write_of_its_own(
    pair: Pair,
) -> None:
    """WAIT answers for what its own connection wrote, and these find that another one, of which
    the replica knows nothing, has done their work. Each has a connection that wrote nothing
    since the replica stalled."""
    async with contextlib.AsyncExitStack() as stack:
        writer, *stores = [
            await stack.enter_async_context(store_with(pair, replicas))
            for replicas in [0] + [1] * 10
        ]
        sessions = [await available(partial(store.create, 7, "laptop")) for store in stores]
        caller, gone = sessions[0], sessions[1]
        token = tokens.make(7)
        with pair.stalled():
            made = await writer._create(7, "laptop", token)
            alone = await writer.create(8, "laptop")
            assert await writer.end_user((await writer.create(9, "laptop")).ID_Usuario) == 1
            assert await writer.end(gone.Token_Sesion, gone.Token_Sesion) == 1
            changed = await writer.update(caller._replace(Dispositivo="phone"))
            later = caller._replace(Fecha_Expiracion=caller.Fecha_Expiracion + 60)
            moved = await writer.update(later._replace(Dispositivo="phone"))
            assert isinstance(changed, Sesion)
            assert isinstance(moved, Sesion)
            again: list[Callable[[SessionStore], Awaitable[Any]]] = [
                lambda store: store._create(7, "laptop", token),
                lambda store: store.end(caller.Token_Sesion, gone.Token_Sesion),
                lambda store: store.update(changed),
                lambda store: store.update(moved),
                lambda store: store.end_one(caller.Token_Sesion, gone.ID_Sesion),
                lambda store: store.end_others(alone.Token_Sesion),
                lambda store: store.revoke(gone.Token_Sesion),
                lambda store: store.end_user(caller.ID_Usuario, gone.ID_Sesion),
                lambda store: store.end_user(9),
                lambda store: store.end_all(made.Token_Sesion, ""),
            ]
            for ask, store in zip(again, stores, strict=True):
                await unconfirmed(ask(store))


@pytest.mark.usefixtures("patient")
async def test_second_try_changes_nothing(pair: Pair) -> None:
    """The write that WAIT needs leaves the record as it is."""
    async with store_with(pair) as store:
        token = tokens.make(8)
        made = await store._create(8, "laptop", token)
        gone = await store.create(8, "laptop")
        assert await store.end(token, gone.Token_Sesion) == 1
        key = session_key(token)
        before = pair.redis.hgetall(key), pair.redis.expiretime(key)
        assert await store._create(8, "phone", token) == made
        assert await store.end(token, gone.Token_Sesion) == 0
        assert (pair.redis.hgetall(key), pair.redis.expiretime(key)) == before


async def test_checks_do_not_wait_for_a_replica(pair: Pair) -> None:
    """Writes wait for the replica on the same connection."""
    async with store_with(pair) as store:
        token = (await available(lambda: store.create(7, "laptop"))).Token_Sesion
        took = []
        with pair.stalled():

            async def write() -> None:
                await unconfirmed(store.create(7, "phone"))

            async with asyncio.TaskGroup() as writes:
                for _ in range(3):
                    for _ in range(5):
                        writes.create_task(write())
                    for _ in range(50):
                        begun = time.monotonic()
                        assert await store.find(token) is not None
                        took.append(time.monotonic() - begun)
                        await asyncio.sleep(0.002)
        assert sorted(took)[int(0.9 * len(took))] < 0.05


@pytest.mark.usefixtures("patient")
async def test_one_wait_serves_many_writes(pair: Pair) -> None:
    async with store_with(pair) as store:
        await store.create(7, "laptop")
        before, creates = pair.calls("wait"), pair.calls("evalsha")
        made = await asyncio.gather(*(store.create(user, "laptop") for user in range(1000)))
        assert len(made) == 1000
        assert pair.calls("evalsha") - creates == 1000
        assert 1 <= pair.calls("wait") - before < 200


@pytest.mark.usefixtures("patient")
async def test_stall_that_ends_in_time_is_no_failure(pair: Pair) -> None:
    async with store_with(pair) as store:
        await store.create(7, "laptop")
        with pair.stalled():
            asked = asyncio.create_task(store.create(7, "laptop"))
            await asyncio.sleep(0.05)
            assert not asked.done()
        assert (await asked).ID_Usuario == 7


async def test_more_replicas_than_there_are_confirm_nothing(pair: Pair) -> None:
    async with store_with(pair, 2) as store:
        await unconfirmed(store.create(7, "laptop"), "1 of 2")
        await unconfirmed(store.create(7, "laptop"), "1 of 2")


@pytest.mark.usefixtures("patient")
async def test_cancelled_callers_cost_no_other_its_answer(pair: Pair) -> None:
    """They are cancelled at any moment. The others have their answers, and only their own."""
    async with store_with(pair) as store:

        async def live(user: int) -> None:
            sesion = await store.create(user, f"device {user}")
            assert sesion.ID_Usuario == user
            updated = await store.update(sesion._replace(Dispositivo="phone"))
            assert isinstance(updated, Sesion)
            assert updated.ID_Sesion == sesion.ID_Sesion
            assert await store.end(sesion.Token_Sesion, sesion.Token_Sesion) == 1

        tasks = [asyncio.create_task(live(user)) for user in range(300)]
        for number, task in enumerate(tasks[::3]):
            await asyncio.sleep(0.0002 * (number % 3))
            task.cancel()
        left = await asyncio.gather(*tasks, return_exceptions=True)
        assert [answer for n, answer in enumerate(left) if n % 3 and answer is not None] == []
        with pair.stalled():
            asked = [asyncio.create_task(store.create(7, "laptop")) for _ in range(6)]
            await asyncio.sleep(0.02)
            for leaving in asked[::2]:
                leaving.cancel()
            for answer in (await asyncio.gather(*asked, return_exceptions=True))[1::2]:
                assert isinstance(answer, StoreUnavailable)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_master_that_goes_before_its_wait_is_unavailable(number: signal.Signals) -> None:
    """The master has replied to the write, and not yet to the WAIT."""
    with (
        RedisServer(port=str(free_port())) as master,
        replica_of(master) as replica,
        master.client() as redis,
    ):
        own = Pair(master, replica, redis)
        async with store_with(own, timeout_seconds=TIMEOUT_SECONDS) as store:
            await available(lambda: store.create(7, "laptop"))
            assert master.process is not None
            assert replica.process is not None
            replica.process.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            asked = [asyncio.create_task(store.create(7, "laptop")) for _ in range(5)]
            await asyncio.sleep(0.05)
            master.process.send_signal(number)
            for answer in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(answer, StoreUnavailable)
            assert time.monotonic() - begun < STALLED_SECONDS
        replica.stop(signal.SIGKILL)  # else the master would wait for it


async def test_write_is_confirmed_by_a_wait_that_is_sent_after_it(pair: Pair) -> None:
    """The WAIT that is in flight does not count: the replica stalls after it."""
    commands = connect(pair.url, 5)
    set_x = "SET", "x", 1, "EX", 1
    try:
        with contextlib.suppress(UnconfirmedError):  # the connection is open
            await commands.execute(*set_x, replicas=1)
        with pair.stalled():
            waits = pair.calls("wait")
            first = asyncio.create_task(commands.execute(*set_x, replicas=1))
            await asyncio.sleep(0.02)
            second = asyncio.create_task(commands.execute(*set_x, replicas=1))
            for task in first, second:
                with pytest.raises(UnconfirmedError):
                    await task
            await asyncio.sleep(0.25)
            assert pair.calls("wait") - waits == 2
    finally:
        await commands.aclose()


@pytest.mark.usefixtures("patient")
async def test_error_does_not_wait_for_a_replica(pair: Pair) -> None:
    commands = connect(pair.url, 5)
    try:
        await commands.execute("PING")
        with pair.stalled():
            begun = time.monotonic()
            with pytest.raises(RedisError, match="unknown command"):
                await commands.execute("NOSUCH", replicas=1)
            assert time.monotonic() - begun < 0.5
    finally:
        await commands.aclose()


def test_unconfirmed_write_is_503_and_one_line_of_log(pair: Pair) -> None:
    """Each 503 asks for another try, and one line in the log stands for all of them."""
    with Service(
        SESIONES_REDIS_URL=pair.url, SESIONES_WAIT_REPLICAS="1", SESIONES_REDIS_TIMEOUT="5"
    ) as service:
        form = {"Content-Type": "application/x-www-form-urlencoded"}

        def create() -> Any:
            return service.request("POST", "/sesiones", form, "ID_Usuario=7&Dispositivo=d")

        while (made := create()).status == 503:
            pass
        assert made.status == 201
        token = made.json()["Token_Sesion"]
        caller = {"x-auth-token": token}
        path = f"?Token_Sesion={token}"
        with pair.stalled():
            for reply in (
                create(),
                create(),
                service.request(
                    "PUT", "/sesiones", {"Content-Type": "application/json"}, made.body
                ),
                service.request("DELETE", f"/sesiones/logout{path}", caller),
            ):
                assert reply.status == 503
                assert reply.headers["retry-after"] == "1"
            assert service.request("GET", "/sesiones/self", caller).status == 401
        assert service.log.count("writes are not confirmed: ") == 1
        assert "Redis is unavailable" not in service.log
        time.sleep(1.1)
        assert comes_true(lambda: create().status == 201, 10)
        assert service.log.count("writes are confirmed again") == 1
