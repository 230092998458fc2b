"""What the parts of a deployment cost, as scripts/capacity.py needs it beside `make bench`.

    python -m scripts.costs              the coefficients, one a line
    python -m scripts.costs --predict    two nodes on three masters, as predicted and as measured

CPU times are utime + stime of the processes over the operations. A prediction is made of
coefficients that the same run measures, because a shared machine changes its pace.
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import uvloop
from redis import Redis

from scripts import bench, wrk
from scripts.bench_servers import ours
from scripts.capacity import hit_ratio
from scripts.chaos import resident
from scripts.command_line import run, show
from sesiones import tokens
from sesiones.http.repeats import Repeats
from sesiones.metrics import Metrics
from sesiones.redis_client.subscription import Lease
from sesiones.sesion import Sesion
from sesiones.store import SessionStore
from sesiones.store.near_cache import ENTRIES_MAX, InvalidationTable, NearCache
from tests.harness.client import Client
from tests.harness.deployment import JSON
from tests.harness.redis_server import RedisCluster, RedisServer, free_port, wait_until
from tests.harness.service import Service

OPERATIONS = 20_000
WRITES = 4000
AT_ONCE = 64
"""Requests in flight."""
MESSAGES = 20_000
USERS = 60
SESSIONS_OF_A_USER = 1000
SUBSCRIBERS = 40
PREDICTED_SESSIONS = 10_000
PREDICTED_CONNECTIONS = 256
PREDICTED_SECONDS = 2
PREDICTED_ROUNDS = 5
RANDOM_REQUESTS = bench.REQUESTS.replace("i = i % #requests + 1", "i = math.random(#requests)")
"""Independent checks, as those of many users are. The load of the bench takes turns."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predict", action="store_true", help="compare the model with a load")
    if parser.parse_args().predict:
        predict()
        return 0
    parts = of_entries(), of_service(), of_messages(), of_traces()
    for name, figure, unit in itertools.chain.from_iterable(parts):
        print(f"{name:<52}{figure:>10,.2f} {unit}", flush=True)
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
    yield "memory of an entry", 1024 * (resident(os.getpid()) - before) / ENTRIES_MAX, "bytes"
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
    figures = [("memory of a worker", 1024.0 * resident(node.process.pid), "bytes")]
    for name, operation in ("login", create), ("logout", end):
        node_us, redis_us, _ = await _cost(redis, node, WRITES, operation)
        figures += [(f"{name}: node", node_us, "us"), (f"{name}: Redis", redis_us, "us")]
        if name == "login":
            _, check_us, wire = await _cost(redis, node, OPERATIONS, check)
            _, slide_us, _ = await _cost(redis, slider, OPERATIONS, slide)
            figures.append(("a slide, beside its check: Redis", slide_us - check_us, "us"))
            figures.append(("a check: node to Redis and back", wire, "bytes"))
            figures.append(
                ("a check: caller to node and back", _http_bytes(node, made[0]), "bytes")
            )
    client.close()
    sliding.close()
    return figures


async def _cost(
    redis: RedisServer, node: Service, times: int, operation: Callable[[], Awaitable[None]]
) -> tuple[float, float, float]:
    """CPU time of the node and of Redis, and the bytes between them, for each operation."""

    async def some() -> None:
        for _ in range(times // AT_ONCE):
            await operation()

    before = _spent(redis, node)
    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    after = _spent(redis, node)
    node_us, redis_us, wire = (
        (now - then) / (times // AT_ONCE * AT_ONCE) for now, then in zip(after, before, strict=True)
    )
    return node_us, redis_us, wire


def _spent(redis: RedisServer, node: Service) -> tuple[float, float, float]:
    assert node.process is not None
    with redis.client() as client:
        stats = client.info("stats")
    wire = stats["total_net_input_bytes"] + stats["total_net_output_bytes"]
    return bench.cpu_us(node.process.pid), _cpu_us(redis), float(wire)


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
        yield "a message: Redis, for each subscriber", (together - alone) / SUBSCRIBERS, "us"
        cached = {"SESIONES_CACHE_SECONDS": "60", "SESIONES_REDIS_URL": redis.url}
        with Service(**cached) as node:
            assert node.process is not None
            node.request("POST", "/sesiones", JSON, '{"ID_Usuario":7,"Dispositivo":"laptop"}')
            wait_until(lambda: _is_subscribed(redis), "the node to subscribe")
            before = bench.cpu_us(node.process.pid)
            _published(redis, redis.port)
            time.sleep(0.5)
            spent = bench.cpu_us(node.process.pid) - before
        yield "a message: node, for each subscription", spent / MESSAGES, "us"
    with RedisCluster(2) as cluster:
        first, second = cluster.servers.values()
        yield "a message: each other node of a Cluster", _published(second, first.port), "us"


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


TOUCH_60 = "--touch-seconds", "60"


@dataclass
class Measured:
    """What two nodes did together: checks a second, and of each check the CPU time of the nodes and
    of the masters; the share of hits."""

    rate: float
    node_us: float
    redis_us: float
    hits: float


def predict() -> None:
    """Two nodes whose entries live for 3 s. What a hit costs comes from two nodes whose entries
    live on, and what a miss costs from two whose entries live for 1 s."""
    seconds = 60, 1, 3
    servers = [
        ours(
            f"entries-of-{each}-{number}",
            "",
            *TOUCH_60,
            *("--cache-seconds", str(each)),
            scheme="redis+cluster",
        )
        for each in seconds
        for number in (1, 2)
    ]
    rounds = []
    with bench.targets(servers, PREDICTED_SESSIONS, RANDOM_REQUESTS) as started:
        for number in range(-1, PREDICTED_ROUNDS):  # the first one warms up
            show(f"round {number + 1} of {PREDICTED_ROUNDS}")
            hits, known, other = (_measure(started[first : first + 2]) for first in (0, 2, 4))
            if number >= 0:
                rounds.append(_compare(hits, known, other, entry_seconds=3))
    show("")
    print(f"{'':<34}{'predicted':>10}{'measured':>10}{'ratio':>8}")
    for index, label in enumerate(("hit ratio", "nodes: CPU us a check", "Redis: CPU us a check")):
        pair = [[each[which][index] for each in rounds] for which in (0, 1)]
        ratios = [predicted / measured for predicted, measured in zip(*pair, strict=True)]
        predicted, measured, ratio = map(statistics.median, (*pair, ratios))
        print(f"{label:<34}{predicted:>10.3f}{measured:>10.3f}{ratio:>8.2f}")


def _compare(
    hits: Measured, known: Measured, other: Measured, entry_seconds: float
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """What is predicted of the last pair, and what was measured of it."""
    misses = 1 - known.hits
    miss_us = (known.node_us - known.hits * hits.node_us) / misses
    expected = hit_ratio(other.rate / 2 / PREDICTED_SESSIONS, entry_seconds)
    predicted = (
        expected,
        expected * hits.node_us + (1 - expected) * miss_us,
        (1 - expected) * known.redis_us / misses,
    )
    return predicted, (other.hits, other.node_us, other.redis_us)


def _measure(nodes: list[bench.Target]) -> Measured:
    before = _spent_by(nodes)
    with ThreadPoolExecutor() as threads:
        results = list(threads.map(_load, nodes))
    node_us, redis_us, hits, lookups = (
        now - then for now, then in zip(_spent_by(nodes), before, strict=True)
    )
    requests = sum(result.requests for result in results)
    return Measured(
        sum(result.rate for result in results),
        node_us / requests,
        redis_us / requests,
        hits / lookups if lookups else 0.0,
    )


def _load(target: bench.Target) -> wrk.Result:
    return wrk.run(
        f"http://127.0.0.1:{target.port}",
        connections=PREDICTED_CONNECTIONS // 2,
        seconds=PREDICTED_SECONDS,
        script=target.load,
        core=bench.LOAD_CORE,
    )


def _spent_by(nodes: list[bench.Target]) -> tuple[float, float, float, float]:
    """CPU time of the nodes and of Redis, hits and lookups of the near-caches, so far."""
    lookups = [bench.cache_lookups(node) for node in nodes]
    return (
        sum(bench.cpu_us(node.pid) for node in nodes),
        sum(map(bench.cpu_us, nodes[0].redis_pids)),
        sum(hits for hits, _ in lookups),
        sum(all_lookups for _, all_lookups in lookups),
    )


if __name__ == "__main__":
    run(main)
