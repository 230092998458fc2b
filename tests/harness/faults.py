"""Faults of a Redis server. Each is a context: it begins with the fault, and at its end the server
answers as before."""

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from redis import Redis

from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer, wait_until
from tests.harness.service import Service

Fault = Callable[[RedisServer], AbstractContextManager[None]]


def client(server: RedisServer) -> "Redis":
    return server.client(decode_responses=True)


@contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def hung(server: RedisServer | Service) -> Iterator[None]:
    """Paused by SIGSTOP: the kernel accepts connections and bytes for it."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


@contextmanager
def _with_one(server: RedisServer, setting: str) -> Iterator[None]:
    with client(server) as redis:
        redis.config_set(setting, 1)
        try:
            yield
        finally:
            redis.config_set(setting, 0)


def full(server: RedisServer) -> AbstractContextManager[None]:
    """OOM: there is less memory than the data need already, so that a logout makes no room."""
    return _with_one(server, "maxmemory")


def noreplicas(server: RedisServer) -> AbstractContextManager[None]:
    return _with_one(server, "min-replicas-to-write")


@contextmanager
def misconf(server: RedisServer) -> Iterator[None]:
    """A snapshot fails, as on a full disk: a folder is where its file should go."""
    with client(server) as redis:
        in_the_way = Path(str(redis.config_get("dir")["dir"])) / "dump.rdb"
        in_the_way.mkdir()
        redis.config_set("save", "3600 1000000")
        redis.config_set("stop-writes-on-bgsave-error", "yes")
        try:
            redis.bgsave()
            _wait(redis, "persistence", "rdb_last_bgsave_status", "err")
            _wait(redis, "persistence", "rdb_bgsave_in_progress", 0)
            yield
        finally:
            in_the_way.rmdir()
            redis.config_set("save", "")


@contextmanager
def cut_off(server: RedisServer) -> Iterator[None]:
    """READONLY: it has the sessions, but is the replica of another server now. (That server cannot
    be reached, so its data do not replace these.)"""
    with client(server) as redis, socket.create_server(("127.0.0.1", 0)) as master:
        redis.replicaof("127.0.0.1", str(master.getsockname()[1]))
        try:
            yield
        finally:
            redis.replicaof("NO", "ONE")


@contextmanager
def demoted(server: RedisServer) -> Iterator[None]:
    """READONLY: a replica takes over with all of the data, and gives it back at the end. The server
    must have a port."""
    port = free_port()
    with (
        RedisServer(port=str(port), repl_diskless_sync_delay="0") as other,
        client(server) as redis,
        client(other) as successor,
    ):
        successor.replicaof("127.0.0.1", str(server.port))
        _hand_over(redis, successor)
        try:
            yield
        finally:
            _hand_over(successor, redis)


def _hand_over(master: "Redis", replica: "Redis") -> None:
    wait_until(
        lambda: master.info("replication").get("slave0", {}).get("state") == "online",
        "the replica to be online",
    )
    master.execute_command("FAILOVER")  # type: ignore[no-untyped-call]
    _wait(replica, "replication", "role", "master")
    _wait(master, "replication", "master_link_status", "up")


def _wait(redis: "Redis", section: str, field: str, value: str | int) -> None:
    wait_until(lambda: redis.info(section).get(field) == value, f"{field} to be {value}")
