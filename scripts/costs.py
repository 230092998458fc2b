"""What the parts of a deployment cost: the coefficients of scripts/capacity.py.

    python -m scripts.costs              measures them, and prints the lines of capacity.py
    python -m scripts.costs --predict    two nodes on three masters, as predicted and as measured

CPU times are those of the processes over the operations. Those of checks need wrk and two cores. A
prediction is made of coefficients that the same run measures, because a shared machine changes its
pace.
"""

import argparse
import asyncio
import gc
import itertools
import os
import socket
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import uvloop
from redis import Redis

from scripts import bench, check_costs
from scripts.capacity import COEFFICIENTS, source_line
from scripts.chaos import resident
from scripts.command_line import run
from sesiones import tokens
from sesiones.http.repeats import Repeats
from sesiones.metrics import Metrics
from sesiones.redis_client.subscription import Lease
from sesiones.sesion import Sesion
from sesiones.store import SessionStore
from sesiones.store.near_cache import ENTRIES_MAX, InvalidationTable, NearCache
from tests.harness.client import Client
from tests.harness.deployment import JSON
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisCluster, RedisServer, wait_until
from tests.harness.service import Service

OPERATIONS = 20_000
WRITES = 4000
AT_ONCE = 64
"""Requests in flight."""
MESSAGES = 20_000
USERS = 60
SESSIONS_OF_A_USER = 1000
SUBSCRIBERS = 40


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predict", action="store_true", help="compare the model with a load")
    if parser.parse_args().predict:
        rows = list(check_costs.predict())
        print("| load | figure | predicted | measured | ratio |\n|---|---|---|---|---|")
        for load, what, predicted, actual, ratio in rows:
            print(f"| {load} | {what} | {predicted:.2f} | {actual:.2f} | {ratio:.2f} |")
        return 0
    measured: dict[str, float] = {}
    parts = check_costs.coefficients(), of_entries(), of_service(), of_messages(), of_traces()
    for name, figure, unit in itertools.chain.from_iterable(parts):
        if name in COEFFICIENTS:
            measured[name] = figure
        else:
            print(f"{name:<52}{figure:>10,.2f} {unit}", flush=True)
    print("\nThe lines of scripts/capacity.py:\n")
    for name in COEFFICIENTS:
        if name in measured:
            print(source_line(name, measured[name]))
    return 0


FULL = "making an entry in a full cache"
Figure = tuple[str, float, str]


def of_entries() -> Iterator[Figure]:
    """The near-cache of one event loop, filled twice over."""
    lease = Lease()
    lease.extend(float("inf"))
    metrics = Metrics()
    cache = NearCache(60, 60, InvalidationTable(), lambda _: lease, metrics)
    repeats = Repeats(cache, metrics)
    gc.collect()
    gc.disable()  # a full collection is timed apart, for the service hardly ever makes one
    before = resident(os.getpid())
    now = time.time()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    batch = 64
    for first in range(0, 2 * ENTRIES_MAX, batch):
        sesiones = [_session(number, int(now)) for number in range(first, first + batch)]
        batch_tokens = [sesion.Token_Sesion for sesion in sesiones]
        keys = [tokens.digest(token) for token in batch_tokens]
        begun = time.perf_counter()
        read = cache.begin(batch_tokens, keys)
        cache.fill(read, sesiones, batch * [1800], now)
        took = time.perf_counter() - begun
        for sesion in sesiones:
            entry = cache.get(sesion.Token_Sesion)
            assert entry is not None
            entry.response = (None, bytes(300))
            repeats.keep(b"GET " + bytes(150) + sesion.Token_Sesion.encode(), entry, bytes(300))
        seconds[first >= ENTRIES_MAX].append(took)
    assert len(cache) == ENTRIES_MAX
    yield "ENTRY_BYTES", 1024 * (resident(os.getpid()) - before) / ENTRIES_MAX, "bytes"
    for full, name in (False, "making an entry"), (True, FULL):
        yield name, 1e6 * statistics.median(seconds[full]) / batch, "us"
    yield "the longest batch of 64 in a full cache", 1e6 * max(seconds[True]), "us"
    gc.enable()
    begun = time.perf_counter()
    gc.collect()
    yield "a full garbage collection with a full cache", 1e6 * (time.perf_counter() - begun), "us"


def _session(number: int, now: int) -> Sesion:
    return Sesion(
        ID_Sesion=4096 * number + 7,
        ID_Usuario=number,
        Token_Sesion=tokens.make(number),
        Fecha_Inicio=now,
        Fecha_Expiracion=now + 1800,
        Estado_Sesion=1,
        Ultima_Actividad=now,
        Dispositivo="Mozilla/5.0 (X11; Linux x86_64) Firefox/1",
    )


def of_service() -> Iterator[Figure]:
    """One node on one Redis, and another one that slides at every check."""
    variables = {"SESIONES_TOUCH_SECONDS": "60"}
    with RedisServer(appendonly="yes") as redis:
        variables["SESIONES_REDIS_URL"] = redis.url
        sliding = variables | {"SESIONES_TOUCH_SECONDS": "0"}
        with Service(**variables) as node, Service(**sliding) as slider:
            yield from uvloop.run(_of_service(redis, node, slider))


async def _of_service(redis: RedisServer, node: Service, slider: Service) -> list[Figure]:
    client, sliding = Client(node.port), Client(slider.port)
    made: list[str] = []

    async def create() -> None:
        made.append(await client.create(len(made) + 1, "Mozilla/5.0 (X11; Linux) Firefox"))

    async def end() -> None:
        assert await client.log_out(made.pop()) == 200

    async def check(client: Client = client) -> None:
        made.append(token := made.pop(0))
        assert await client.check(token) == 200

    async def slide() -> None:
        await check(sliding)

    assert node.process is not None
    figures = [("WORKER_BYTES", 1024.0 * resident(node.process.pid), "bytes")]
    for name, operation in ("LOGIN", create), ("LOGOUT", end):
        spent = await _cost(redis, node, WRITES, operation)
        figures += [(f"NODE_{name}", spent.node_us, "us"), (f"REDIS_{name}", spent.redis_us, "us")]
        if name == "LOGIN":
            checks = await _cost(redis, node, OPERATIONS, check)
            slides = await _cost(redis, slider, OPERATIONS, slide)
            figures.append(("REDIS_SLIDE", slides.redis_us - checks.redis_us, "us"))
            lone = await _cost(redis, node, WRITES, check, at_once=1)
            call_bytes = (lone.wire_bytes - checks.wire_bytes) / (lone.calls - checks.calls)
            check_bytes = lone.wire_bytes - lone.calls * call_bytes
            figures += [("CHECK_BYTES", check_bytes, "bytes"), ("CALL_BYTES", call_bytes, "bytes")]
            figures.append(("CALLER_BYTES", _http_bytes(node, made[0]), "bytes"))
    client.close()
    sliding.close()
    return figures


class Spent(NamedTuple):
    """CPU time of the node and of Redis, scripts that Redis ran, and bytes between the two."""

    node_us: float
    redis_us: float
    calls: float
    wire_bytes: float


async def _cost(
    redis: RedisServer,
    node: Service,
    times: int,
    operation: Callable[[], Awaitable[None]],
    *,
    at_once: int = AT_ONCE,
) -> Spent:
    """What was spent on each operation."""

    async def some() -> None:
        for _ in range(times // at_once):
            await operation()

    before = _spent(redis, node)
    await asyncio.gather(*(some() for _ in range(at_once)))
    after = _spent(redis, node)
    number = times // at_once * at_once
    return Spent(*((now - then) / number for now, then in zip(after, before, strict=True)))


def _spent(redis: RedisServer, node: Service) -> Spent:
    assert node.process is not None
    with redis.client() as client:
        stats = client.info("stats")
        calls = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    wire = stats["total_net_input_bytes"] + stats["total_net_output_bytes"]
    return Spent(bench.cpu_us(node.process.pid), _cpu_us(redis), float(calls), float(wire))


def _cpu_us(redis: RedisServer) -> float:
    assert redis.process is not None
    return bench.cpu_us(redis.process.pid)


def _http_bytes(node: Service, token: str) -> int:
    request = f"GET /sesiones/self HTTP/1.1\r\nHost: sesiones\r\nX-Auth-Token: {token}\r\n\r\n"
    return len(request) + len(node.raw(request.encode()))


def of_messages() -> Iterator[Figure]:
    """What publishing the end of a session costs, beside the script that does it."""
    with RedisServer(port=str(free_port())) as redis:
        alone = _published(redis, redis.port)
        with _subscribers(redis, SUBSCRIBERS):
            together = _published(redis, redis.port)
        yield "REDIS_DELIVERY", (together - alone) / SUBSCRIBERS, "us"
        cached = {"SESIONES_CACHE_SECONDS": "60", "SESIONES_REDIS_URL": redis.url}
        with Service(**cached) as node:
            assert node.process is not None
            node.request("POST", "/sesiones", JSON, '{"ID_Usuario":7,"Dispositivo":"laptop"}')
            wait_until(lambda: _is_subscribed(redis), "the node to subscribe")
            before = bench.cpu_us(node.process.pid)
            _published(redis, redis.port)
            time.sleep(0.5)
            spent = bench.cpu_us(node.process.pid) - before
        yield "NODE_MESSAGE", spent / MESSAGES, "us"
    with RedisCluster(2) as cluster:
        first, second = cluster.servers.values()
        yield "REDIS_BUS", _published(second, first.port), "us"


def _is_subscribed(redis: RedisServer) -> bool:
    with redis.client() as client:
        return bool(client.pubsub_channels())


def _published(redis: RedisServer, port: int) -> float:
    """CPU time of the server for each message that is published at the port."""
    with Redis(port=port) as client:
        message = tokens.digest(tokens.make(7))
        before = _cpu_us(redis)
        for _ in range(MESSAGES):
            client.publish("sesiones:invalidated", message)
        time.sleep(0.2)
        return (_cpu_us(redis) - before) / MESSAGES


@contextmanager
def _subscribers(redis: RedisServer, number: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(number):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", redis.port)))
            connection.sendall(b"SUBSCRIBE sesiones:invalidated\r\n")
            connection.recv(1000)
            threading.Thread(target=_drain, args=(connection,), daemon=True).start()
        yield


def _drain(connection: socket.socket) -> None:
    try:
        while connection.recv(1 << 20):
            pass
    except OSError:
        pass


def of_traces() -> Iterator[Figure]:
    """What SESIONES_WHY_SECONDS costs, in logoutAlls of users with many sessions each."""
    with RedisServer() as redis:
        for seconds, name in (0, "an ending by logoutAll"), (3600, "the same, with its trace"):
            yield f"{name}: Redis", uvloop.run(_cost_of_endings(redis, seconds)), "us"
        with redis.client() as client:
            keys = list(client.scan_iter("*:w"))
            memory = sum(client.memory_usage(key, samples=0) or 0 for key in keys)
            traces = sum(client.zcard(key) for key in keys)
        yield "memory of a trace", memory / traces, "bytes"


async def _cost_of_endings(redis: RedisServer, why_seconds: int) -> float:
    """CPU time of Redis for each session that ends."""
    spent = 0.0
    async with SessionStore.from_url(
        redis.url, timeout_seconds=5.0, why_seconds=why_seconds
    ) as store:
        for user in range(USERS):
            made = [await store.create(user, "laptop") for _ in range(SESSIONS_OF_A_USER)]
            before = _cpu_us(redis)
            assert await store.end_all(made[0].Token_Sesion, "") == SESSIONS_OF_A_USER
            spent += _cpu_us(redis) - before
    return spent / (USERS * SESSIONS_OF_A_USER)


if __name__ == "__main__":
    run(main)
