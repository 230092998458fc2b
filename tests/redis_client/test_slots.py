"""Slots that move between the nodes of a Cluster: no live session is refused, no ended one
accepted, and a write is done as a whole or not at all."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
from redis import Redis

from sesiones import tokens
from sesiones.sesion import Login, Sesion, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.records import counter_key, index_key, session_key, slot_of
from tests.harness.redis_server import RedisCluster
from tests.harness.stores import available, open_store

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]


def users_with_own_slots(start: int, number: int) -> list[int]:
    """Users of different slots, in which no earlier user is."""
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


async def move_slot(cluster: RedisCluster, user: int, target: int, choose: random.Random) -> None:
    """Move the user's slot to another node, key by key in any order."""
    slot, call = slot_of(user), asyncio.to_thread
    source = cluster.owner(slot)
    if source == target:
        return
    await call(cluster.begin_move, slot, source, target)
    while keys := await call(cluster.run, source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
        await call(cluster.move_keys, source, target, choose.choice(keys))
        await asyncio.sleep(0.002)
    await call(cluster.end_move, slot, source, target)


def check_index(cluster: RedisCluster, user: int) -> None:
    """The index names the user's sessions, and every key of theirs expires."""
    keys = state_of(cluster, user)
    sessions = [key for key in keys if ":h:" in key]
    assert all(expires > 0 for key, (_, expires) in keys.items() if key[-2:] != ":n")
    port = cluster.owner(slot_of(user))
    members = cluster.clients[port].zrange(index_key(user), 0, -1)
    assert sorted(members) == sorted(key.rsplit(":", 1)[1] for key in sessions)


@pytest.mark.slow
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

    # Every check slides, so that it is a write.
    async with open_store(cluster.url, touch_seconds=0) as store, asyncio.TaskGroup() as tasks:
        for user in users:
            tasks.create_task(use(store, user))
        for target in cluster.master_ports[:2]:
            await asyncio.sleep(0.2)  # until the nodes agree on the moves before
            for user in users:
                await move_slot(cluster, user, target, choose)
        moving = False
    assert len(done) == 6
    assert sum(done.values()) > 1000
    for user in users:
        check_index(cluster, user)


def writes(store: SessionStore, one: Sesion, two: Sesion) -> list[Callable[[], Awaitable[Any]]]:
    """Writes to the sessions of a user, the last of which ends all of them."""
    return [
        lambda: store.create(one.ID_Usuario, "three"),
        lambda: store.update(one._replace(Dispositivo="uno")),
        lambda: store.update(two._replace(Fecha_Expiracion=two.Fecha_Expiracion - 5)),
        lambda: store.end(one.Token_Sesion, two.Token_Sesion),
        lambda: store.end_all(one.Token_Sesion, one.Token_Sesion),
    ]


async def whole_or_not_at_all(
    cluster: RedisCluster, user: int, operations: list[Callable[[], Awaitable[Any]]]
) -> list[Any]:
    """The outcomes of the operations. One that is unavailable has written nothing."""
    outcomes: list[Any] = []
    for operation in operations:
        before = await asyncio.to_thread(state_of, cluster, user)
        try:
            outcomes.append(await operation())
        except StoreUnavailable:
            outcomes.append(StoreUnavailable)
            assert await asyncio.to_thread(state_of, cluster, user) == before
    return outcomes


SPLITS = list(product([False, True], repeat=4))
"""Every way in which a user's two sessions, index and counter may lie on the two sides of a move:
whether each has moved."""


class HalfMoved:
    """A user with two sessions, whose slot is moving to the first node: nodes that move slots to
    each other at once may lose some. ``lock``: for one command of a move at a time."""

    def __init__(self, cluster: RedisCluster, user: int, lock: asyncio.Lock) -> None:
        self.cluster, self.user, self.slot = cluster, user, slot_of(user)
        self.source, self.target = cluster.owner(self.slot), cluster.master_ports[0]
        self._lock = lock

    async def begin(self, store: SessionStore, split: tuple[bool, ...]) -> tuple[Sesion, Sesion]:
        one, two = [
            await available(partial(store.create, self.user, device)) for device in ("one", "two")
        ]
        keys = [session_key(one.Token_Sesion), session_key(two.Token_Sesion)]
        keys += [index_key(self.user), counter_key(self.user)]
        await asyncio.to_thread(self.cluster.begin_move, self.slot, self.source, self.target)
        await self._move(*itertools.compress(keys, split))
        return one, two

    async def finish(self) -> None:
        rest = self.cluster.run(self.source, "CLUSTER", "GETKEYSINSLOT", self.slot, 100)
        await self._move(*rest)
        async with self._lock:
            await asyncio.to_thread(self.cluster.end_move, self.slot, self.source, self.target)

    async def _move(self, *keys: str) -> None:
        if keys:
            async with self._lock:
                await asyncio.to_thread(self.cluster.move_keys, self.source, self.target, *keys)

    async def session_keys(self) -> list[str]:
        state = await asyncio.to_thread(state_of, self.cluster, self.user)
        return [key for key in state if ":h:" in key]


def users_elsewhere(cluster: RedisCluster, start: int, number: int) -> list[int]:
    """Users whose slots are not on the first node."""
    target = cluster.master_ports[0]
    users = users_with_own_slots(start, 2 * number + 50)
    return [user for user in users if cluster.owner(slot_of(user)) != target][:number]


async def test_slot_of_which_some_keys_have_moved_answers_checks(cluster: RedisCluster) -> None:
    """Checks answer, without a slide where it cannot be; the others are done as a whole or not at
    all."""
    outcomes: list[Any] = []
    lock = asyncio.Lock()

    async def half_moved(store: SessionStore, hasty: SessionStore, user: int, number: int) -> None:
        moving = HalfMoved(cluster, user, lock)
        one, two = await moving.begin(store, SPLITS[number % len(SPLITS)])
        for sesion in (one, two) * 2:
            found = await store.find(sesion.Token_Sesion)
            assert found is not None
            assert found.ID_Sesion == sesion.ID_Sesion
        assert await store.find(tokens.make(user)) is None

        operations = writes(hasty, one, two)
        if number >= len(SPLITS):
            operations = operations[-1:]
        done = await whole_or_not_at_all(cluster, user, operations)
        outcomes.extend(done)
        left = await moving.session_keys()
        if isinstance(done[-1], int):
            assert not left
        for sesion in one, two:
            found = await store.find(sesion.Token_Sesion)
            assert (found is not None) == (session_key(sesion.Token_Sesion) in left)

        await moving.finish()
        last = await store.create(user, "last")
        assert await store.end_all(last.Token_Sesion, last.Token_Sesion) == len(left) + 1
        assert list(await asyncio.to_thread(state_of, cluster, user)) == [counter_key(user)]

    async with (
        open_store(cluster.url, touch_seconds=0) as store,
        open_store(cluster.url, timeout_seconds=0.2, touch_seconds=0) as hasty,
    ):
        users = users_elsewhere(cluster, 2000, 2 * len(SPLITS))
        await asyncio.gather(
            *(half_moved(store, hasty, user, number) for number, user in enumerate(users))
        )
    assert outcomes.count(StoreUnavailable) > 40
    assert sum(isinstance(outcome, Sesion) for outcome in outcomes) > 5
    assert outcomes.count(2) == 2


MANAGED: dict[str, Callable[[SessionStore, Sesion, Sesion], Awaitable[Any]]] = {
    "end_others": lambda store, one, two: store.end_others(one.Token_Sesion),
    "end_one": lambda store, one, two: store.end_one(one.Token_Sesion, two.ID_Sesion),
    "end_user, one": lambda store, one, two: store.end_user(two.ID_Usuario, two.ID_Sesion),
    "revoke": lambda store, one, two: store.revoke(two.Token_Sesion),
    "create": lambda store, one, two: store.create(
        one.ID_Usuario, "new", Login(Token_Anterior=two.Token_Sesion, Sustituye=two.ID_Sesion)
    ),
}
"""Operations that end the second session, and keep the first."""


@pytest.mark.parametrize("operation", MANAGED)
async def test_slot_that_is_moving_ends_a_session_as_a_whole_or_not_at_all(
    cluster: RedisCluster, operation: str
) -> None:
    number = list(MANAGED).index(operation)
    ended = []
    lock = asyncio.Lock()

    async def end(store: SessionStore, user: int, split: tuple[bool, ...]) -> None:
        moving = HalfMoved(cluster, user, lock)
        one, two = await moving.begin(store, split)
        write = partial(MANAGED[operation], store, one, two)
        (outcome,) = await whole_or_not_at_all(cluster, user, [write])
        if outcome is not StoreUnavailable:
            left = await moving.session_keys()
            assert session_key(one.Token_Sesion) in left
            assert session_key(two.Token_Sesion) not in left
            ended.append(split)
        await moving.finish()
        count = len(await moving.session_keys())
        assert await available(partial(store.end_user, user)) == count
        assert not await moving.session_keys()

    # No check slides: what end_others and end_one write is what their scripts write.
    async with open_store(cluster.url, timeout_seconds=0.3, touch_seconds=60) as store:
        users = users_elsewhere(cluster, 3500, len(SPLITS) * len(MANAGED))[number :: len(MANAGED)]
        await asyncio.gather(*map(partial(end, store), users, SPLITS))
    # A create names the key that it makes, which may be on the other node.
    assert ended == [] if operation == "create" else (False,) * 4 in ended


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
    async with open_store(cluster.url, timeout_seconds=0.5, touch_seconds=0) as store:
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
        await available(partial(store.create, user, "five"))
        assert not cluster.clients[target].exists(key)
        assert cluster.clients[target].zscore(index, member) is None


async def test_list_finds_a_slot_that_has_moved(cluster: RedisCluster) -> None:
    """No check, which would have corrected the map, comes before a list for the backend."""
    user = 2000
    source = cluster.owner(slot_of(user))
    target = next(port for port in cluster.servers if port != source)
    async with open_store(cluster.url) as store:
        sesion = await store.create(user, "laptop")
        for old, new in (source, target), (target, source):
            await asyncio.to_thread(cluster.move_slot, slot_of(user), old, new)
            (listed,) = await store.sessions(user)
            assert listed.ID_Sesion == sesion.ID_Sesion
        assert await store.end_user(user) == 1


async def test_node_that_is_added_serves_the_slot_that_is_moved_to_it(
    cluster: RedisCluster,
) -> None:
    """The node has no slots, and the service does not know it, until one is moved to it."""
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
