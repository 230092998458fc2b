"""A Cluster, on real ones: whatever its nodes do, no session is refused that is live, none is let
in that has ended, and who is not concerned notices nothing."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis, ResponseError

from sesiones import tokens
from sesiones.redis_client.cluster import masters_of
from sesiones.sesion import Refusal, Sesion, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.records import index_key, session_key, slot_of
from tests.harness.redis_server import RedisCluster, RedisServer, free_port
from tests.harness.stores import available, open_store

pytestmark = pytest.mark.anyio


def users_with_own_slots(start: int, number: int) -> list[int]:
    """Users of different slots, which are those of none before them."""
    taken = {slot_of(user) for user in range(start)}
    users: list[int] = []
    while len(users) < number:
        if slot_of(start) not in taken:
            taken.add(slot_of(start))
            users.append(start)
        start += 1
    return users


def state_of(cluster: RedisCluster, user: int) -> dict[str, Any]:
    """What lies in the user's slot, on whichever node."""
    found: dict[str, Any] = {}
    for port in cluster.servers:
        for key in cluster.run(port, "CLUSTER", "GETKEYSINSLOT", slot_of(user), 1000):
            assert key not in found
            with Redis(port=port) as client, client.pipeline(transaction=False) as pipeline:
                for command in "DUMP", "EXPIRETIME":
                    pipeline.execute_command("ASKING")
                    pipeline.execute_command(command, key)
                found[key] = pipeline.execute()[1::2]
    return found


until = partial(available, seconds=20)


async def test_sessions_of_many_slots_live_and_end(cluster: RedisCluster) -> None:
    async def live(store: SessionStore, user: int) -> None:
        one, two, three = [await store.create(user, f"device {user}") for _ in range(3)]
        found = await store.find(one.Token_Sesion)
        assert found is not None
        assert found.ID_Sesion == one.ID_Sesion
        updated = await store.update(found._replace(Dispositivo="otro"))
        assert isinstance(updated, Sesion)
        assert updated.Dispositivo == "otro"
        stranger = await store.create(user + 1, "laptop")
        assert await store.end(one.Token_Sesion, stranger.Token_Sesion) is Refusal.FORBIDDEN
        assert await store.end(one.Token_Sesion, two.Token_Sesion) == 1
        assert await store.find(two.Token_Sesion) is None
        assert await store.end_all(one.Token_Sesion, one.Token_Sesion) == 2
        assert await store.find(three.Token_Sesion) is None
        assert await store.find(stranger.Token_Sesion) is not None

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


# Slots that move.


async def test_slots_that_move_under_load_cost_no_answer(cluster: RedisCluster) -> None:
    """Users use their sessions while their slots move from node to node, key by key. Each knows
    what it has done; nothing fails, and nothing is answered wrongly."""
    choose = random.Random(7)
    users = users_with_own_slots(1000, 25)
    done: dict[str, int] = {}
    moving = True

    async def use(store: SessionStore, user: int) -> None:
        live = {(s := await store.create(user, "laptop")).Token_Sesion: s for _ in range(3)}
        ended: list[str] = []
        while moving:
            token = choose.choice(list(live))
            action = choose.choice(["find"] * 6 + ["ended", "create", "update", "end", "end_all"])
            if action == "find":
                found = await store.find(token)
                assert found is not None
                assert found.Dispositivo == live[token].Dispositivo
            elif action == "ended" and ended:
                assert await store.find(choose.choice(ended)) is None
            elif action == "create" or len(live) < 3:
                made = await store.create(user, "laptop")
                live[made.Token_Sesion] = made
            elif action == "update":
                given = live[token]._replace(Dispositivo=f"{choose.random()}")
                updated = await store.update(given)
                assert isinstance(updated, Sesion)
                live[token] = updated
            elif action == "end":
                assert await store.end(token, token) == 1
                del live[token]
                ended.append(token)
            elif action == "end_all" and choose.random() < 0.3:
                assert await store.end_all(token, token) == len(live)
                ended += live
                live.clear()
                made = await store.create(user, "laptop")
                live[made.Token_Sesion] = made
            done[action] = done.get(action, 0) + 1
            await asyncio.sleep(0)
        for token in ended:
            assert await store.find(token) is None
        for token in live:
            assert await store.find(token) is not None

    async def move(user: int, target: int) -> None:
        slot, call = slot_of(user), asyncio.to_thread
        source = cluster.owner(slot)
        if source == target:
            return
        await call(cluster.begin_move, slot, source, target)
        while keys := await call(cluster.run, source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            await call(cluster.move_keys, source, target, choose.choice(keys))
            await asyncio.sleep(0.002)
        await call(cluster.end_move, slot, source, target)

    # Every check slides, so that it is a write.
    async with open_store(cluster.url, touch_seconds=0) as store, asyncio.TaskGroup() as tasks:
        for user in users:
            tasks.create_task(use(store, user))
        for target in cluster.master_ports[:2]:
            await asyncio.sleep(0.2)  # until the nodes agree on the moves before
            for user in users:
                await move(user, target)
        moving = False
    assert len(done) == 6
    assert sum(done.values()) > 1000
    for user in users:
        keys = state_of(cluster, user)
        sessions = [key for key in keys if ":h:" in key]
        assert all(expires > 0 for key, (_, expires) in keys.items() if key[-2:] != ":n")
        port = cluster.owner(slot_of(user))
        members = cluster.clients[port].zrange(index_key(user), 0, -1)
        assert sorted(members) == sorted(key.rsplit(":", 1)[1] for key in sessions)


async def test_slot_of_which_some_keys_have_moved_answers_checks(cluster: RedisCluster) -> None:
    """Every way in which a user's two sessions, index and counter may lie on the two sides. Checks
    answer, without a slide where it cannot be; the others are done as a whole or not at all."""
    splits = list(product([False, True], repeat=4))
    outcomes: list[Any] = []
    one_at_a_time = asyncio.Lock()
    # Nodes that move slots to each other at once may lose some: all go to one.
    target = cluster.master_ports[0]

    async def half_moved(store: SessionStore, hasty: SessionStore, user: int, number: int) -> None:
        call, slot = asyncio.to_thread, slot_of(user)
        source = cluster.owner(slot)
        one, two = [await store.create(user, device) for device in ("one", "two")]
        index = index_key(user)
        keys = [
            session_key(one.Token_Sesion),
            session_key(two.Token_Sesion),
            index,
            index.rpartition("u:")[0] + "n",
        ]
        await call(cluster.begin_move, slot, source, target)
        for key, moved in zip(keys, splits[number % len(splits)], strict=True):
            if moved:
                async with one_at_a_time:
                    await call(cluster.move_keys, source, target, key)
        for sesion in (one, two) * 2:
            found = await store.find(sesion.Token_Sesion)
            assert found is not None
            assert found.ID_Sesion == sesion.ID_Sesion
        assert await store.find(tokens.make(user)) is None

        operations: list[Callable[[], Awaitable[Any]]] = [
            lambda: hasty.create(user, "three"),
            lambda: hasty.update(one._replace(Dispositivo="uno")),
            lambda: hasty.update(two._replace(Fecha_Expiracion=two.Fecha_Expiracion - 5)),
            lambda: hasty.end(one.Token_Sesion, two.Token_Sesion),
            lambda: hasty.end_all(one.Token_Sesion, one.Token_Sesion),
        ]
        if number >= len(splits):
            operations = operations[-1:]
        for operation in operations:
            before = await call(state_of, cluster, user)
            try:
                outcome = await operation()
            except StoreUnavailable:
                outcome = StoreUnavailable
                assert await call(state_of, cluster, user) == before
            outcomes.append(outcome)
        left = [key for key in await call(state_of, cluster, user) if ":h:" in key]
        if isinstance(outcome, int):
            assert not left
        for sesion in one, two:
            found = await store.find(sesion.Token_Sesion)
            assert (found is not None) == (session_key(sesion.Token_Sesion) in left)

        rest = await call(cluster.run, source, "CLUSTER", "GETKEYSINSLOT", slot, 100)
        async with one_at_a_time:
            if rest:
                await call(cluster.move_keys, source, target, *rest)
            await call(cluster.end_move, slot, source, target)
        last = await store.create(user, "last")
        assert await store.end_all(last.Token_Sesion, last.Token_Sesion) == len(left) + 1
        assert list(await call(state_of, cluster, user)) == [keys[-1]]

    async with (
        open_store(cluster.url, touch_seconds=0) as store,
        open_store(cluster.url, timeout_seconds=0.2, touch_seconds=0) as hasty,
    ):
        users = [
            user
            for user in users_with_own_slots(2000, 100)
            if cluster.owner(slot_of(user)) != target
        ][: 2 * len(splits)]
        await asyncio.gather(
            *(half_moved(store, hasty, user, number) for number, user in enumerate(users))
        )
    assert outcomes.count(StoreUnavailable) > 40
    assert sum(isinstance(outcome, Sesion) for outcome in outcomes) > 5
    assert outcomes.count(2) == 2


@pytest.mark.parametrize("operation", ["find", "create", "end", "end_all"])
async def test_expired_session_stays_indexed_while_its_key_may_be_on_another_node(
    cluster: RedisCluster, operation: str
) -> None:
    """An index drops an expired session with its key. While that may have moved to another node,
    where a clock that steps back would bring it to life, it stays in the index."""
    user = 3100 + len(operation)
    slot, index = slot_of(user), index_key(user)
    source = cluster.owner(slot)
    target = next(port for port in cluster.master_ports if port != source)
    # Every check slides, so that it is a write.
    async with open_store(cluster.url, touch_seconds=0) as store:
        made = [await store.create(user, device) for device in ("one", "two", "three")]
        mine, other, expired = made
        key, member = session_key(expired.Token_Sesion), session_key(expired.Token_Sesion)[-22:]
        cluster.run(source, "ZADD", index, expired.Fecha_Inicio - 1, member)
        cluster.begin_move(slot, source, target)
        cluster.move_keys(source, target, key)
        match operation:
            case "find":
                assert await store.find(mine.Token_Sesion) is not None
            case "end":
                assert await store.end(mine.Token_Sesion, other.Token_Sesion) == 1
            case "end_all":
                assert await store.end_all(mine.Token_Sesion, mine.Token_Sesion) == 2
            case "create":
                with contextlib.suppress(StoreUnavailable):  # a new key may be elsewhere too
                    await store.create(user, "four")
        assert cluster.clients[source].zscore(index, member) is not None
        rest = cluster.run(source, "CLUSTER", "GETKEYSINSLOT", slot, 100)
        cluster.move_keys(source, target, *rest)
        cluster.end_move(slot, source, target)
        await until(partial(store.create, user, "five"))
        assert not cluster.clients[target].exists(key)
        assert cluster.clients[target].zscore(index, member) is None


async def test_node_that_is_added_serves_the_slot_that_is_moved_to_it(
    cluster: RedisCluster,
) -> None:
    """It has no slots, and the service does not know it, until one is moved to it."""
    user = 3000
    slot = slot_of(user)
    source = cluster.owner(slot)
    async with open_store(cluster.url) as store:
        sesion = await store.create(user, "laptop")
        added = await asyncio.to_thread(cluster.add)
        await asyncio.to_thread(cluster.wait, lambda port: knows(cluster, port, added))
        cluster.begin_move(slot, source, added)
        keys = cluster.run(source, "CLUSTER", "GETKEYSINSLOT", slot, 100)
        cluster.move_keys(source, added, *keys)
        assert await store.find(sesion.Token_Sesion) is not None
        cluster.end_move(slot, source, added)
        assert await store.end(sesion.Token_Sesion, sesion.Token_Sesion) == 1
        assert await store.find(sesion.Token_Sesion) is None
        other = await store.create(user, "laptop")

        cluster.begin_move(slot, added, source)
        keys = cluster.run(added, "CLUSTER", "GETKEYSINSLOT", slot, 100)
        cluster.move_keys(added, source, *keys)
        cluster.end_move(slot, added, source)
        cluster.remove(added)
        assert await store.find(other.Token_Sesion) is not None


def knows(cluster: RedisCluster, port: int, other: int) -> bool:
    state_ok = "cluster_state:ok" in cluster.run(port, "CLUSTER", "INFO")
    return state_ok and cluster.id(other) in cluster.run(port, "CLUSTER", "NODES")


# Nodes that fail.


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
                assert (await until(partial(store.create, user, "laptop"))).ID_Usuario == user


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


@pytest.mark.parametrize("failing", ["killed", "stopped", "a stranger's", "an empty node's"])
async def test_node_that_fails_costs_its_users_alone(cluster: RedisCluster, failing: str) -> None:
    """The others are as fast as ever, under load. Nor has a session ended because somebody else's
    Redis, which has none, answers at the address of a node that is gone."""
    async with open_store(cluster.url, timeout_seconds=1) as store:
        sessions = [await until(partial(store.create, user, "laptop")) for user in range(300, 360)]
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
        assert server.process is not None
        if failing == "stopped":
            server.process.send_signal(signal.SIGSTOP)
        else:
            server.stop(signal.SIGKILL)
        alone: dict[str, Any] = {"cluster_enabled": "yes", "cluster_port": str(free_port())}
        stranger = RedisServer(port=str(port), **(alone if failing == "an empty node's" else {}))
        if failing in ("a stranger's", "an empty node's"):
            stranger.start()
        try:
            async with asyncio.TaskGroup() as checks:
                for session in kept + lost:
                    checks.create_task(check(session))
                await asyncio.sleep(1)
                back.set()
            with pytest.raises(StoreUnavailable):
                await store.end(lost[0].Token_Sesion, lost[0].Token_Sesion)
        finally:
            stranger.close()
            if failing == "stopped":
                server.process.send_signal(signal.SIGCONT)
            else:
                server.start()
        assert slowest[True] < 2
        assert slowest[False] < 0.5
        begun = time.monotonic()
        for session in lost:
            assert await until(partial(store.find, session.Token_Sesion)) is not None
        # The Cluster itself takes a moment to take a node back.
        assert time.monotonic() - begun < 5


async def test_refused_writes_cost_no_check_while_the_masters_confirm_the_node(
    cluster: RedisCluster,
) -> None:
    """Checks answer, while the other masters say that the node is still the slot's."""
    async with open_store(cluster.url, timeout_seconds=0.5, touch_seconds=0) as store:
        made = [await until(partial(store.create, user, "laptop")) for user in range(400, 430)]
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
            assert await until(partial(store.find, made[0].Token_Sesion)) is not None

            # Or they say nothing.
            for other in others:
                cluster.servers[other].process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
            with pytest.raises(StoreUnavailable):
                await store.find(made[0].Token_Sesion)
        finally:
            for server in cluster.servers.values():
                server.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
            for client in cluster.clients.values():
                client.config_set("min-replicas-to-write", 0)


async def test_aclose_fails_what_is_in_flight(cluster: RedisCluster) -> None:
    store = open_store(cluster.url)
    made = [await until(partial(store.create, user, "laptop")) for user in range(500, 510)]
    for server in cluster.servers.values():
        server.process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
    try:
        out = [asyncio.create_task(store.find(sesion.Token_Sesion)) for sesion in made]
        out.append(asyncio.create_task(store.end(made[0].Token_Sesion, made[0].Token_Sesion)))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        await store.aclose()
        async with asyncio.timeout(1):
            for answer in await asyncio.gather(*out, return_exceptions=True):
                assert isinstance(answer, StoreUnavailable)
    finally:
        for server in cluster.servers.values():
            server.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
    with pytest.raises(StoreUnavailable):
        await store.find(made[0].Token_Sesion)


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
            await until(partial(store.create, ours, "laptop"))
            await until(partial(store.create, theirs, "laptop"))

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
            await until(partial(store.create, ours, "laptop"))
            await until(partial(store.create, theirs, "laptop"))


# With replicas.


async def test_failovers_cost_only_the_slots_concerned(anyio_backend_name: str) -> None:
    """One that is asked for, and one because a master died: no wrong answer, no error beyond the
    slots concerned, and those are back as soon as the Cluster is."""
    with RedisCluster(3, 3) as cluster:
        async with open_store(cluster.url, timeout_seconds=0.25, touch_seconds=0) as store:
            users = range(600, 690)
            sessions = [await until(partial(store.create, user, "laptop")) for user in users]
            ended = [await until(partial(store.create, user, "phone")) for user in users]
            for sesion in ended:
                assert await store.end(sesion.Token_Sesion, sesion.Token_Sesion) == 1
            masters = cluster.master_ports
            replica_of = dict(zip(masters, list(cluster.servers)[3:], strict=True))
            port_of = {user: cluster.owner(slot_of(user)) for user in users}
            # WAIT would say so of its own caller's writes alone.
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
                assert await until(partial(store.find, theirs.Token_Sesion)) is not None
                assert time.monotonic() - begun < 6
                assert (await store.create(theirs.ID_Usuario, "tablet")).ID_Usuario
                going_on = False
            assert refused[second] > 0
            assert {port: refused[port] - before[port] for port in masters if port != second} == {
                port: 0 for port in masters if port != second
            }


# The map.

hosts = st.one_of(st.none(), st.just(b""), st.from_regex(rb"[a-z0-9.:-]{1,20}", fullmatch=True))
ports = st.integers(1, 65535)
nodes = st.tuples(hosts, ports, st.just(b"name")).map(list)


@given(st.lists(st.integers(0, 16384), min_size=2, max_size=9, unique=True), st.data())
def test_slot_map_names_the_master_of_each_slot(bounds: list[int], data: st.DataObject) -> None:
    bounds.sort()
    reply: list[list[Any]] = [
        [first, last - 1, *data.draw(st.lists(nodes, min_size=1, max_size=3))]
        for first, last in pairwise(bounds)
    ]
    masters, names = masters_of(reply, "asked")
    assert len(masters) == 16384
    for first, last, *entries in reply:
        addresses = [((host or b"asked").decode(), port) for host, port, *_ in entries]
        assert set(masters[first : last + 1]) == {addresses[0]}
        assert names.keys() >= set(addresses)
    assert masters.count(None) == 16384 - (bounds[-1] - bounds[0])


@pytest.mark.parametrize(
    ("host", "metadata", "address"),
    [
        (b"?", [[b"ip", b"10.0.0.1"]], "10.0.0.1"),
        (b"?", [[b"hostname", b"", b"ip", b""]], "asked"),
        (b"?", [], "asked"),
        (b"name.example", [[b"ip", b"10.0.0.1"]], "name.example"),
        (None, [[b"ip", b"10.0.0.1"]], "asked"),
    ],
)
def test_unknown_hostname_is_replaced_by_the_address(
    host: bytes | None, metadata: Any, address: str
) -> None:
    masters, names = masters_of([[0, 1, [host, 7000, b"n", *metadata]]], "asked")
    assert masters[:3] == [(address, 7000), (address, 7000), None]
    assert names == {(address, 7000): "n"}


anything = st.recursive(
    st.none() | st.integers() | st.binary(max_size=5), lambda inner: st.lists(inner, max_size=4)
)


@given(anything | st.lists(st.tuples(st.integers(-2, 16386), st.integers(-2, 16386), anything)))
def test_reply_that_is_no_slot_map_is_refused(reply: Any) -> None:
    with contextlib.suppress(ValueError):
        masters, names = masters_of(reply, "asked")
        assert len(masters) == 16384
        assert names.keys() >= set(masters) - {None}
