"""Nodes of a Cluster that fail, or refuse: users of other nodes notice nothing, and no check is
answered wrongly."""

import asyncio
import contextlib
import random
import signal
import time
from functools import partial
from typing import Any

import pytest
from redis import ResponseError

from sesiones import tokens
from sesiones.sesion import Refusal, Sesion, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.faults import hung
from tests.harness.ports import free_port
from tests.harness.records import slot_of
from tests.harness.redis_server import RedisCluster, RedisServer
from tests.harness.stores import available, open_store

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]


async def test_sessions_of_many_slots_live_and_end(cluster: RedisCluster) -> None:
    async def live(store: SessionStore, user: int) -> None:
        one, two, three = [await store.create(user, f"device {user}") for _ in range(3)]
        found = await store.find(one.Token_Sesion)
        assert found is not None
        assert found.ID_Sesion == one.ID_Sesion
        updated = await store.update(found._replace(Dispositivo="otro"))
        assert isinstance(updated, Sesion)
        assert updated.Dispositivo == "otro"
        other = await store.create(user + 1, "laptop")
        assert await store.end(one.Token_Sesion, other.Token_Sesion) is Refusal.FORBIDDEN
        assert await store.end(one.Token_Sesion, two.Token_Sesion) == 1
        assert await store.find(two.Token_Sesion) is None
        assert await store.end_all(one.Token_Sesion, one.Token_Sesion) == 2
        assert await store.find(three.Token_Sesion) is None
        assert await store.find(other.Token_Sesion) is not None

    async with open_store(cluster.url) as store, asyncio.TaskGroup() as lives:
        for user in range(0, 300, 2):
            lives.create_task(live(store, user))
    assert all(client.dbsize() > 100 for client in cluster.clients.values())


async def test_checks_of_a_node_share_calls(cluster: RedisCluster) -> None:
    async with open_store(cluster.url) as store:
        made = await asyncio.gather(*(store.create(user, "x") for user in range(150)))
        assert all(await asyncio.gather(*(store.find(s.Token_Sesion) for s in made)))
        for client in cluster.clients.values():
            client.config_resetstat()
        found = await asyncio.gather(*(store.find(s.Token_Sesion) for s in made))
        assert [s and s.ID_Usuario for s in found] == list(range(150))
        for client in cluster.clients.values():
            assert client.info("commandstats")["cmdstat_evalsha"]["calls"] <= 2


async def test_unreachable_cluster_is_unavailable_in_time() -> None:
    store = open_store(f"redis+cluster://127.0.0.1:{free_port()}", timeout_seconds=0.25)
    for _ in range(2):
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.create(7, "laptop")
        assert time.monotonic() - begun < 0.5
    await store.aclose()


async def test_nodes_without_the_hostnames_that_they_prefer_are_reached() -> None:
    with RedisCluster(2, cluster_preferred_endpoint_type="hostname") as cluster:
        async with open_store(cluster.url) as store:
            for user in range(20):
                assert (await available(partial(store.create, user, "laptop"))).ID_Usuario == user


async def test_server_that_is_no_cluster_is_unavailable(redis_server: RedisServer) -> None:
    port = free_port()
    with RedisServer(port=str(port)):
        store = open_store(f"redis+cluster://127.0.0.1:{port}", timeout_seconds=0.25)
        with pytest.raises(StoreUnavailable, match="cluster support disabled"):
            await store.create(7, "laptop")
        await store.aclose()


async def test_cancelled_callers_cost_no_other_its_session(cluster: RedisCluster) -> None:
    choose = random.Random(7)
    async with open_store(cluster.url) as store:
        sessions = [await store.create(user, f"device {user}") for user in range(200, 230)]
    async with open_store(cluster.url) as store:  # which does not know the nodes

        async def check() -> None:
            for _ in range(5):
                session = choose.choice(sessions)
                found = await store.find(session.Token_Sesion)
                assert found is not None
                assert found.ID_Usuario == session.ID_Usuario

        async def write() -> None:
            assert (await store.create(231, "laptop")).ID_Usuario == 231

        tasks = [asyncio.create_task(choose.choice([check, check, write])()) for _ in range(300)]
        leaving = [task for task in tasks if choose.random() < 1 / 3]
        for task in leaving:
            await asyncio.sleep(choose.random() * 0.002)
            task.cancel()
        await asyncio.gather(*(task for task in tasks if task not in leaving))


@pytest.mark.parametrize(
    "failing",
    [
        *("hung", "an empty node"),
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("killed", "another server")),
    ],
)
async def test_node_that_fails_costs_its_users_alone(cluster: RedisCluster, failing: str) -> None:
    """The others are as fast as ever, under load. Nor has a session ended because another Redis,
    which has none, answers at the address of a node that is gone."""
    async with open_store(cluster.url, timeout_seconds=1) as store:
        sessions = [
            await available(partial(store.create, user, "laptop")) for user in range(300, 360)
        ]
        port = cluster.owner(slot_of(300))
        lost = [s for s in sessions if cluster.owner(slot_of(s.ID_Usuario)) == port]
        kept = [s for s in sessions if s not in lost]
        assert len(lost) > 10
        assert len(kept) > 10
        slowest: dict[bool, float] = {False: 0, True: 0}

        async def check(session: Sesion) -> None:
            while not back.is_set():
                begun = time.monotonic()
                if session in lost:
                    with pytest.raises(StoreUnavailable):
                        await store.find(session.Token_Sesion)
                else:
                    assert await store.find(session.Token_Sesion) is not None
                    await asyncio.sleep(0.002)
                took = time.monotonic() - begun
                slowest[session in lost] = max(took, slowest[session in lost])

        back = asyncio.Event()
        server = cluster.servers[port]
        if failing == "hung":
            server.process.send_signal(signal.SIGSTOP)
        else:
            server.stop(signal.SIGKILL)
        empty: dict[str, Any] = {"cluster_enabled": "yes", "cluster_port": str(free_port())}
        intruder = RedisServer(port=str(port), **(empty if failing == "an empty node" else {}))
        if failing in ("another server", "an empty node"):
            intruder.start()
        try:
            async with asyncio.TaskGroup() as checks:
                for session in kept + lost:
                    checks.create_task(check(session))
                await asyncio.sleep(1)
                back.set()
            with pytest.raises(StoreUnavailable):
                await store.end(lost[0].Token_Sesion, lost[0].Token_Sesion)
        finally:
            intruder.close()
            if failing == "hung":
                server.process.send_signal(signal.SIGCONT)
            else:
                server.start()
        assert slowest[True] < 2
        assert slowest[False] < 0.5
        begun = time.monotonic()
        for session in lost:
            assert await available(partial(store.find, session.Token_Sesion)) is not None
        # The Cluster itself takes a moment to take a node back.
        assert time.monotonic() - begun < 5


async def test_refused_writes_cost_no_check_while_the_masters_confirm_the_node(
    cluster: RedisCluster,
) -> None:
    """Checks are answered while the other masters say that the slot is still the node's."""
    async with open_store(cluster.url, timeout_seconds=0.5, touch_seconds=0) as store:
        made = [await available(partial(store.create, user, "laptop")) for user in range(400, 430)]
        for client in cluster.clients.values():
            client.config_set("min-replicas-to-write", 1)
        try:
            found = await asyncio.gather(*(store.find(s.Token_Sesion) for s in made))
            assert [s and s.ID_Sesion for s in found] == [s.ID_Sesion for s in made]
            assert await store.find(tokens.make(400)) is None
            with pytest.raises(StoreUnavailable, match="NOREPLICAS"):
                await store.create(400, "phone")
            with pytest.raises(StoreUnavailable, match="NOREPLICAS"):
                await store.end(made[0].Token_Sesion, made[0].Token_Sesion)

            # Two of three masters say that the slot is another's, until they hear from its own.
            slot = slot_of(400)
            port = cluster.owner(slot)
            others = [other for other in cluster.servers if other != port]
            refused = None
            for _ in range(20):
                for other in others:
                    cluster.run(other, "CLUSTER", "SETSLOT", slot, "NODE", cluster.id(others[0]))
                try:
                    await store.find(made[0].Token_Sesion)
                except StoreUnavailable as error:
                    refused = str(error)
                    break
            assert refused == "the node is not known to be the slot's master"
            for each in cluster.servers:
                cluster.run(each, "CLUSTER", "SETSLOT", slot, "NODE", cluster.id(port))
            assert await available(partial(store.find, made[0].Token_Sesion)) is not None

            # Or they say nothing.
            for other in others:
                cluster.servers[other].process.send_signal(signal.SIGSTOP)
            with pytest.raises(StoreUnavailable):
                await store.find(made[0].Token_Sesion)
        finally:
            for server in cluster.servers.values():
                server.process.send_signal(signal.SIGCONT)
            for client in cluster.clients.values():
                client.config_set("min-replicas-to-write", 0)


async def test_aclose_fails_what_is_in_flight(cluster: RedisCluster) -> None:
    store = open_store(cluster.url)
    made = [await available(partial(store.create, user, "laptop")) for user in range(500, 510)]
    with contextlib.ExitStack() as stack:
        for server in cluster.servers.values():
            stack.enter_context(hung(server))
        out = [asyncio.create_task(store.find(sesion.Token_Sesion)) for sesion in made]
        out.append(asyncio.create_task(store.end(made[0].Token_Sesion, made[0].Token_Sesion)))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        await store.aclose()
        async with asyncio.timeout(1):
            for answer in await asyncio.gather(*out, return_exceptions=True):
                assert isinstance(answer, StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        await store.find(made[0].Token_Sesion)


@pytest.mark.slow
async def test_reset_nodes_are_refused_until_they_are_a_new_cluster(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At the same addresses. One of them is refused, as the others know better; all of them are a
    new Cluster."""
    with RedisCluster(2) as cluster:
        async with open_store(cluster.url, timeout_seconds=0.25) as store:
            first, second = cluster.master_ports
            ours, theirs = (
                next(user for user in range(100) if cluster.owner(slot_of(user)) == port)
                for port in (first, second)
            )
            await available(partial(store.create, ours, "laptop"))
            await available(partial(store.create, theirs, "laptop"))

            def make_anew(port: int) -> None:
                cluster.run(port, "FLUSHALL")
                cluster.run(port, "CLUSTER", "RESET", "HARD")
                cluster.clients[port].client_kill_filter(_type="normal")

            make_anew(first)
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await store.create(ours, "laptop")
                with pytest.raises(StoreUnavailable):
                    await store.find(tokens.make(ours))
            assert "Traceback" not in caplog.text
            await store.create(theirs, "laptop")

            make_anew(second)
            cluster.run(first, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            cluster.wait(lambda port: port == second or cluster.owner(0) == first)
            await available(partial(store.create, ours, "laptop"))
            await available(partial(store.create, theirs, "laptop"))


# With replicas.


@pytest.mark.slow
async def test_failovers_cost_only_the_slots_concerned(anyio_backend_name: str) -> None:
    """One that is asked for, and one because a master died: no wrong answer, no error beyond the
    slots concerned, and those are back as soon as the Cluster is."""
    with RedisCluster(3, 3) as cluster:
        async with open_store(cluster.url, timeout_seconds=0.25, touch_seconds=0) as store:
            users = range(600, 690)
            sessions = [await available(partial(store.create, user, "laptop")) for user in users]
            ended = [await available(partial(store.create, user, "phone")) for user in users]
            for sesion in ended:
                assert await store.end(sesion.Token_Sesion, sesion.Token_Sesion) == 1
            masters = cluster.master_ports
            replica_of = dict(zip(masters, list(cluster.servers)[3:], strict=True))
            port_of = {user: cluster.owner(slot_of(user)) for user in users}
            # WAIT covers only the writes of its own connection.
            cluster.wait(cluster.in_sync)
            refused: dict[int, int] = dict.fromkeys(masters, 0)
            going_on = True

            async def check(live: Sesion, gone: Sesion) -> None:
                while going_on:
                    try:
                        assert await store.find(live.Token_Sesion) is not None
                        assert await store.find(gone.Token_Sesion) is None
                    except StoreUnavailable:
                        refused[port_of[live.ID_Usuario]] += 1
                    await asyncio.sleep(0.01)

            async with asyncio.TaskGroup() as checks:
                for pair in zip(sessions, ended, strict=True):
                    checks.create_task(check(*pair))
                await asyncio.sleep(0.2)
                assert not any(refused.values())

                first, second, _ = masters
                ours = next(user for user in users if port_of[user] == first)
                while cluster.owner(slot_of(ours)) == first:
                    # On a busy machine it may come to nothing, and is asked for again.
                    with contextlib.suppress(ResponseError):
                        cluster.run(replica_of[first], "CLUSTER", "FAILOVER")
                    await asyncio.sleep(1)
                await asyncio.sleep(0.3)
                assert refused[second] == 0

                before = dict(refused)
                cluster.servers[second].stop(signal.SIGKILL)
                theirs = next(s for s in sessions if port_of[s.ID_Usuario] == second)
                begun = time.monotonic()
                await asyncio.sleep(0.3)
                assert await available(partial(store.find, theirs.Token_Sesion)) is not None
                assert time.monotonic() - begun < 6
                assert (await store.create(theirs.ID_Usuario, "tablet")).ID_Usuario
                going_on = False
            assert refused[second] > 0
            assert {port: refused[port] - before[port] for port in masters if port != second} == {
                port: 0 for port in masters if port != second
            }
