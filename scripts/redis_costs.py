"""What checks, and the calls that they come in, cost a Redis that is at its limit: it never sleeps,
because there is always another call. For check_costs.py."""

import os
import random
import socket
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hiredis
from redis import Redis

from scripts import bench
from sesiones.redis_client.single import Server
from sesiones.store.keys import Keys
from sesiones.store.scripts import CHECK
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer

SESSIONS = 1000
CONNECTIONS = 64
SECONDS = 0.5


def check_and_call() -> tuple[float, float]:
    """Microseconds of CPU time for a check, and for a call beside its checks."""
    with (
        RedisServer(port=str(free_port()), appendonly="no") as redis,
        tempfile.TemporaryDirectory(prefix="sesiones-costs-") as folder,
    ):
        sessions = bench.make_sessions(redis.url, SESSIONS, Path(folder))
        with Redis(port=redis.port) as client:
            client.script_load(CHECK.source)
        os.sched_setaffinity(redis.process.pid, {bench.LOAD_CORE})
        keys = [Keys("sesiones").session(token) for _, token in sessions]
        most = Server.batch_max
        alone_us, batch_us = (_call_us(redis, keys, batch) for batch in (1, most))
    check_us = (batch_us - alone_us) / (most - 1)
    return check_us, alone_us - check_us


def _call_us(redis: RedisServer, keys: list[str], batch: int) -> float:
    """CPU time of a call with so many checks, of many connections that call at the same time."""
    calls = [_packed(random.sample(keys, batch)) for _ in range(1000)]
    cores = os.sched_getaffinity(0)
    with ExitStack() as stack:
        os.sched_setaffinity(0, {bench.SERVER_CORE})
        stack.callback(os.sched_setaffinity, 0, cores)
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", redis.port)))
            for _ in range(CONNECTIONS)
        ]
        readers = [hiredis.Reader() for _ in connections]
        number, before, end = 0, bench.exact_cpu_us(redis.process.pid), time.monotonic() + SECONDS
        while time.monotonic() < end:
            for connection in connections:
                connection.sendall(random.choice(calls))
            for connection, reader in zip(connections, readers, strict=True):
                while (reply := reader.gets()) is False:
                    reader.feed(connection.recv(65536))
                if isinstance(reply, Exception):
                    raise reply
            number += len(connections)
        return (bench.exact_cpu_us(redis.process.pid) - before) / number


def _packed(keys: list[str]) -> bytes:
    """A call as store/scripts.py makes it, which slides nothing."""
    declared = keys if len(keys) == 1 else []
    words: Any = (
        *("EVALSHA", CHECK.sha, len(declared), *declared),
        *(60, bench.IDLE_SECONDS, *keys),
        *(0, "", 1),
    )
    return bytes(hiredis.pack_command(words))
