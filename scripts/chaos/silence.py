"""A logout is acknowledged but not replicated, and then its master falls silent: no FIN, no RST.
The replica that takes over has the session, and nothing tells the node that ended it: it has no
traffic for that server, or is paused itself for longer than tombstones last."""

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

import uvloop
from redis import Redis
from redis.crc import key_slot

from scripts.chaos import Bar
from sesiones import tokens
from sesiones.store.tombstones import TOMBSTONE_TTL_SECONDS
from tests.harness.client import Client
from tests.harness.faults import client as redis_client
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisCluster, RedisSentinels, RedisServer, wait_until
from tests.harness.relay import Relay
from tests.harness.service import Service

SHORT_TTL_SECONDS = 3.0
LATER_SECONDS = 2.0
"""Than the tombstones' life, until the shard is asked."""
ASKED_SECONDS, SHORT_ASKED_SECONDS = 10.0, 2.0
"""How long it is asked."""
MAY_TAKE_SECONDS = 8.0
"""Until the replay is through, once the nodes run."""
FLAW = ""
"""A program that breaks the service, to see that the bars notice."""


@dataclass
class Deployment:
    """``silence``: the master falls silent, and its replica takes over. ``concerns``: whether the
    user's sessions are on that master."""

    url: str
    master: RedisServer
    replica: RedisServer
    silence: Callable[[], None]
    concerns: Callable[[int], bool] = lambda _: True


def _send(server: RedisServer, number: signal.Signals) -> None:
    server.process.send_signal(number)


def _is_master(server: RedisServer) -> bool:
    with redis_client(server) as redis:
        return bool(redis.info("replication")["role"] == "master")


def _replace(master: RedisServer, replica: RedisServer) -> None:
    """The master falls silent, and the Sentinels or the Cluster have the replica take over."""
    _send(master, signal.SIGSTOP)
    _send(replica, signal.SIGCONT)
    wait_until(lambda: _is_master(replica), "the replica to take over", 30)


def _single(stack: ExitStack) -> Deployment:
    """Behind a port, which leads to the replica later."""
    master, replica = (stack.enter_context(RedisServer(port=str(free_port()))) for _ in range(2))
    with redis_client(master) as redis, redis_client(replica) as other:
        redis.config_set("repl-diskless-sync-delay", 0)
        other.replicaof("127.0.0.1", str(master.port))
    relay = stack.enter_context(Relay(master.port))

    def silence() -> None:
        _send(master, signal.SIGSTOP)
        _send(replica, signal.SIGCONT)
        with redis_client(replica) as redis:
            redis.replicaof("NO", "ONE")
        relay.target = replica.port
        relay.swallow()

    return Deployment(f"redis://127.0.0.1:{relay.port}", master, replica, silence)


def _sentinel(stack: ExitStack) -> Deployment:
    redis = stack.enter_context(RedisSentinels(replicas=1))
    master, replica = redis.servers.values()
    return Deployment(redis.url, master, replica, lambda: _replace(master, replica))


def _cluster(stack: ExitStack) -> Deployment:
    redis = stack.enter_context(RedisCluster(3, 3))
    master, replica = list(redis.servers.values())[::3]
    return Deployment(
        redis.url,
        master,
        replica,
        lambda: _replace(master, replica),
        lambda user: key_slot(tokens.user_bucket(user).encode()) < 16384 // 3,
    )


DEPLOYMENTS = {"single server": _single, "Sentinel": _sentinel, "Cluster": _cluster}


def play(short: bool) -> Iterator[Bar]:
    yield from uvloop.run(_every_kind(short))


async def _every_kind(short: bool) -> list[Bar]:
    """At once: most of the time they wait."""
    return [*chain(*await asyncio.gather(*(_play(kind, short) for kind in DEPLOYMENTS)))]


async def _until(client: Client, token: str, status: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while await client.check(token) != status:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


async def _play(kind: str, short: bool) -> list[Bar]:
    ttl = SHORT_TTL_SECONDS if short else float(TOMBSTONE_TTL_SECONDS)
    program = (
        f"from sesiones.store import tombstones\ntombstones.TOMBSTONE_TTL_SECONDS = {ttl}\n"
        f"{FLAW}\nfrom sesiones.__main__ import main\nmain()"
    )
    with ExitStack() as stack:
        deployment = await asyncio.to_thread(DEPLOYMENTS[kind], stack)
        services = [Service(SESIONES_REDIS_URL=deployment.url) for _ in range(3)]
        for service in services:
            service.command = (sys.executable, "-c", program)
            await asyncio.to_thread(stack.enter_context, service)
        idle, paused, other = clients = [Client(service.port) for service in services]

        users = [user for user in range(1, 2000) if deployment.concerns(user)]
        others = [user for user in range(1, 2000) if not deployment.concerns(user)]
        # Each of two nodes ends a session of its own; one session stays.
        ended = {client: await client.create(users[0]) for client in (idle, paused)}
        live = await other.create(users[0])
        elsewhere = [await idle.create(user) for user in others[:20]]
        for client in clients:
            for token in (*ended.values(), live, *elsewhere):
                assert await client.check(token) == 200
        await _end_and_silence(deployment, ended, services[1], idle, elsewhere, ttl)

        own: dict[Client, Counter[int]] = {client: Counter() for client in ended}
        until = time.monotonic() + (SHORT_ASKED_SECONDS if short else ASKED_SECONDS)
        while time.monotonic() < until:
            for client, token in ended.items():
                own[client][await client.check(token)] += 1
            await asyncio.sleep(0.02)
        pairs = [(client, token) for client in clients for token in ended.values()]
        gone = [await _until(*pair, 401, MAY_TAKE_SECONDS) for pair in pairs]
        stays = [await _until(client, live, 200, MAY_TAKE_SECONDS) for client in clients]
        gone += [await client.check(token) == 401 for client, token in pairs]
        for client in clients:
            client.close()
    life = f"{ttl:.0f} s" if short else "a minute"
    return [
        Bar(
            f"{kind}, its master falls silent after a logout: never accepted by the node that "
            f"ended it, asked more than {life} later",
            _counted(own[idle]),
            not own[idle][200],
        ),
        Bar(
            f"{kind}, the same with that node paused for longer than {life}",
            _counted(own[paused]),
            not own[paused][200],
        ),
        Bar(
            f"{kind}: nor by any node once it has been ended again; the user's other session stays",
            f"{gone.count(True)} of {len(gone)} refused, {stays.count(True)} of {len(stays)} live",
            all(gone) and all(stays),
        ),
    ]


async def _end_and_silence(
    deployment: Deployment,
    ended: dict[Client, str],
    paused: Service,
    idle: Client,
    elsewhere: list[str],
    ttl: float,
) -> None:
    """End the sessions, each at its node, while nothing is replicated; then the master falls
    silent and one node is paused, both for longer than tombstones last."""
    with redis_client(deployment.master) as master:
        await asyncio.to_thread(wait_until, lambda: _replicated(master), "the replica")
        _send(deployment.replica, signal.SIGSTOP)
        master.client_kill_filter(_type="replica")
    for client, token in ended.items():
        assert await client.log_out(token) == 200
    paused.process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.to_thread(deployment.silence)
        # Meanwhile the other node has traffic for other shards alone, where there are any.
        until = time.monotonic() + ttl + LATER_SECONDS
        while time.monotonic() < until:
            for token in elsewhere:
                await idle.check(token)
            await asyncio.sleep(0.1)
    finally:
        paused.process.send_signal(signal.SIGCONT)


def _counted(statuses: Counter[int]) -> str:
    return ", ".join(f"{count:,} x {status}" for status, count in sorted(statuses.items()))


def _replicated(master: "Redis") -> bool:
    state = master.info("replication")
    replica = state.get("slave0")
    return bool(
        replica
        and replica["state"] == "online"
        and replica["offset"] >= state["master_repl_offset"]
    )
