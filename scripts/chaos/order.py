"""Many users check, create and update at real nodes while Redis and the nodes fail in every way
that loses, delays or cuts replies: each answer must be of the user whose token it was."""

import asyncio
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

import orjson
import uvloop
from redis import Redis

from scripts.chaos import Bar
from tests.harness.faults import hung
from tests.harness.redis_server import RedisCluster, RedisSentinels, RedisServer, free_port
from tests.harness.service import Service
from tests.harness.traffic import Client, Reply

USERS, SHORT_USERS = 400, 60
SECONDS, SHORT_SECONDS = 120.0, 3.0
"""Of each kind of deployment."""
ANSWERS_MIN, SHORT_ANSWERS_MIN = 20_000, 300
TIMEOUT_SECONDS = 0.25


def play(short: bool) -> Iterator[Bar]:
    for kind, deploy in DEPLOYMENTS.items():
        yield uvloop.run(_play(kind, deploy, short))


Deploy = Callable[[ExitStack], tuple[str, Callable[[], Sequence[RedisServer]]]]
"""The URL, and a function for the servers that can fail now."""


def _single(stack: ExitStack) -> tuple[str, Callable[[], Sequence[RedisServer]]]:
    server = stack.enter_context(RedisServer(port=str(free_port())))
    return f"redis://127.0.0.1:{server.port}", lambda: [server]


def _sentinel(stack: ExitStack) -> tuple[str, Callable[[], Sequence[RedisServer]]]:
    redis = stack.enter_context(RedisSentinels())
    return redis.url, lambda: [redis.servers[port] for port in redis.named()]


def _cluster(stack: ExitStack) -> tuple[str, Callable[[], Sequence[RedisServer]]]:
    redis = stack.enter_context(RedisCluster(3, 3))
    return redis.url, lambda: list(redis.servers.values())


DEPLOYMENTS: dict[str, Deploy] = {
    "single server": _single,
    "Sentinel": _sentinel,
    "Cluster": _cluster,
}


@dataclass
class Judge:
    """What every answer is held against: ``users`` has the user of each token."""

    users: dict[str, int] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    def judge(self, operation: str, user: int, reply: Reply, token: str | None = None) -> None:
        self.statuses[reply.status] += 1
        if operation == "verify" and reply.status == 200:
            if reply.headers.get("X-Id-Usuario") != str(user):
                self.wrong[f"{operation}: of another user"] += 1
        elif reply.status in (200, 201):
            session = orjson.loads(reply.body)
            if session["ID_Usuario"] != user or session["Dispositivo"] != _device(user):
                self.wrong[f"{operation}: of another user"] += 1
            elif token is not None and session["Token_Sesion"] != token:
                self.wrong[f"{operation}: of another token"] += 1


def _device(user: int) -> str:
    return f"device of {user}"


async def _use(client: Client, user: int, judge: Judge, until: float) -> None:
    """One user: logs in, and then checks, renames and logs in anew."""
    session: dict[str, object] | None = None
    while time.monotonic() < until:
        if session is None or random.random() < 0.1:
            body: object = {"ID_Usuario": user, "Dispositivo": _device(user)}
            reply = await client.ask("POST", "/sesiones", body=body)
            judge.judge("create", user, reply)
            if reply.status == 201:
                session = orjson.loads(reply.body)
        elif random.random() < 0.1:
            token = str(session["Token_Sesion"])
            judge.judge("update", user, await client.ask("PUT", "/sesiones", body=session), token)
        elif random.random() < 0.3:
            token = str(session["Token_Sesion"])
            reply = await client.ask("GET", "/sesiones/verificar", token)
            judge.judge("verify", user, reply, token)
        else:
            token = str(session["Token_Sesion"])
            reply = await client.ask("GET", "/sesiones/self", token)
            judge.judge("check", user, reply, token)
            if reply.status == 401:
                session = None  # lost with its master
        await asyncio.sleep(random.random() * 0.02)


async def _fail(
    servers: Callable[[], Sequence[RedisServer]], services: Sequence[Service], until: float
) -> Counter[str]:
    """One fault after the other, of what there is at the time; how many of each."""
    faults: Counter[str] = Counter()
    kinds = ["connections killed", "service paused", "Redis paused", "Redis killed"]
    while time.monotonic() < until:
        await asyncio.sleep(random.uniform(0.05, 0.3))
        kind = kinds[faults.total() % len(kinds)]
        server = random.choice(await asyncio.to_thread(servers) or [None])
        if server is None or server.process is None:
            continue
        if kind == "service paused":
            process = random.choice(services).process
            assert process is not None
            await _pause(process, random.uniform(0.05, 0.6))
        elif kind == "Redis paused":
            await _hold(hung(server), random.uniform(0.05, 0.6))
        elif kind == "Redis killed":
            await asyncio.to_thread(server.stop, signal.SIGKILL)
            await asyncio.sleep(random.uniform(0, 0.3))
            await asyncio.to_thread(server.start)
        else:
            await asyncio.to_thread(_kill_connections, server)
        faults[kind] += 1
    return faults


async def _pause(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        process.send_signal(signal.SIGCONT)


async def _hold(fault: AbstractContextManager[None], seconds: float) -> None:
    with fault:
        await asyncio.sleep(seconds)


def _kill_connections(server: RedisServer) -> None:
    with Redis(unix_socket_path=str(server.socket)) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def _play(kind: str, deploy: Deploy, short: bool) -> Bar:
    users, seconds = (SHORT_USERS, SHORT_SECONDS) if short else (USERS, SECONDS)
    judge = Judge()
    with ExitStack() as stack:
        url, servers = await asyncio.to_thread(deploy, stack)
        services = [
            Service(SESIONES_REDIS_URL=url, SESIONES_REDIS_TIMEOUT=str(TIMEOUT_SECONDS))
            for _ in range(2)
        ]
        clients = [
            Client((await asyncio.to_thread(stack.enter_context, service)).port)
            for service in services
        ]
        until = time.monotonic() + seconds
        failing = asyncio.create_task(_fail(servers, services, until))
        await asyncio.gather(
            *(_use(clients[user % len(clients)], user, judge, until) for user in range(users))
        )
        faults = await failing
        for client in clients:
            client.close()
    answers = judge.statuses[200] + judge.statuses[201]
    counted = ", ".join(f"{count:,} x {status}" for status, count in sorted(judge.statuses.items()))
    happened = ", ".join(f"{fault} {count} times" for fault, count in sorted(faults.items()))
    wrong = ", ".join(f"{what}: {count}" for what, count in judge.wrong.items())
    return Bar(
        f"{kind}: under faults, every answer is of the user whose token it was",
        f"{wrong or 'none wrong'}; {counted}; {happened}",
        not judge.wrong
        and len(faults) == 4
        and answers >= (SHORT_ANSWERS_MIN if short else ANSWERS_MIN),
    )
