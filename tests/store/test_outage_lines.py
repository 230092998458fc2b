"""What the line of an outage says: which server, how it failed, the limit that was exceeded; and no
credentials."""

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager

import pytest
from redis import Redis

from sesiones import tokens
from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.fake_redis import serving
from tests.harness.faults import hung
from tests.harness.metrics import counted
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisCluster, RedisServer
from tests.harness.stores import open_store

pytestmark = pytest.mark.anyio

PASSWORD = "secreto-1"
Ask = Callable[[SessionStore], Awaitable[object]]
ASKS: dict[str, Ask] = {
    "check": lambda store: store.find(tokens.make(7)),
    "write": lambda store: store.create(7, "d"),
}


async def outage_line(
    caplog: pytest.LogCaptureFixture, store: SessionStore, ask: Ask, begin: str = "Redis is unav"
) -> str:
    """The only line of the level ERROR, after that of an operation that is unavailable."""
    async with aclosing(store):
        with pytest.raises(StoreUnavailable):
            await ask(store)
    (line,) = (each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR)
    assert line.startswith(begin)
    assert PASSWORD not in line
    return line


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
async def test_refused_connection_names_its_address(
    caplog: pytest.LogCaptureFixture, ask: Ask
) -> None:
    address = f"127.0.0.1:{free_port()}"
    for url in (
        f"redis://user:{PASSWORD}@{address}/3",
        f"redis+cluster://:{PASSWORD}@{address}",
        f"redis+sentinel://:{PASSWORD}@{address}/primary",
    ):
        caplog.clear()
        line = await outage_line(caplog, open_store(url, timeout_seconds=0.25), ask)
        assert line.count(address) >= 1


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
async def test_server_that_hangs_is_named_with_the_limit(
    caplog: pytest.LogCaptureFixture, ask: Ask
) -> None:
    with RedisServer() as server:
        store = open_store(server.url, timeout_seconds=0.3)
        await store.create(7, "d")
        with hung(server):
            line = await outage_line(caplog, store, ask)
    assert re.search(rf": {re.escape(str(server.socket))}: no (answer|reply) in 0\.(3|15) s$", line)


async def test_server_that_never_answers_is_named_with_the_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with silent_server() as port:
        url = f"redis://user:{PASSWORD}@127.0.0.1:{port}/0"
        line = await outage_line(caplog, open_store(url, timeout_seconds=0.2), ASKS["check"])
    assert re.search(rf"127\.0\.0\.1:{port}: no (answer|reply|connection) in 0\.\d+ s", line)


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("reply", [b":1\r\n", b"*0\r\n"])
async def test_malformed_reply_names_its_server(
    caplog: pytest.LogCaptureFixture, ask: Ask, reply: bytes
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(reply)

    async with serving(answer) as address:
        store = open_store(f"redis://{address}")
        line = await outage_line(caplog, store, ask)
    assert line.endswith(f": {address}: a reply that no script of ours gives")
    assert counted(store.metrics)["sesiones_redis_errors_total['refused']"] == 1


async def test_refusal_names_the_server_that_refused(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Redis(unix_socket_path=str(redis_server.socket)) as redis:
        redis.acl_setuser("narrow", enabled=True, passwords=[f"+{PASSWORD}"], commands=["+time"])
    url = f"unix://narrow:{PASSWORD}@{redis_server.socket}"
    line = await outage_line(caplog, open_store(url), ASKS["write"])
    assert f"{redis_server.socket}: " in line
    assert "evalsha" in line


async def test_node_of_a_cluster_that_fails_is_the_one_that_is_named(
    cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(cluster.url, timeout_seconds=0.3)
    users = range(100)
    made = [await store.create(user, "d") for user in users]
    by_node = {store_node(store, sesion.Token_Sesion): sesion.Token_Sesion for sesion in made}
    (address, token), *_ = by_node.items()
    with hung(cluster.servers[address[1]]):
        line = await outage_line(caplog, store, lambda store: store.find(token))
    assert f"{address[0]}:{address[1]}: " in line


def store_node(store: SessionStore, token: str) -> tuple[str, int]:
    node_of = store._loops.get().runner.main.node_of
    assert node_of is not None
    node = node_of(tokens.bucket(token))
    assert isinstance(node, tuple)
    return node


async def test_unconfirmed_write_names_the_master_and_the_limit(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(redis_server.url, wait_replicas=1)
    line = await outage_line(caplog, store, ASKS["write"], "writes are not confirmed")
    assert line.endswith(f": {redis_server.socket}: confirmed by 0 of 1 replicas in 0.1 s")


async def test_lease_that_is_missing_names_the_master(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Redis(unix_socket_path=str(redis_server.socket)) as redis:
        redis.acl_setuser(
            "deaf",
            enabled=True,
            passwords=[f"+{PASSWORD}"],
            categories=["+@all"],
            commands=["-subscribe"],
            keys=["*"],
            channels=["*"],
        )
    url = f"unix://deaf:{PASSWORD}@{redis_server.socket}"
    async with aclosing(open_store(url, cache_seconds=60)) as store:
        await store.find(tokens.make(7))
        async with asyncio.timeout(10):
            while not (line := next((each.getMessage() for each in caplog.records), "")):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert line.startswith(f"the cache asks Redis about every check: {redis_server.socket}: ")
    assert "subscribe" in line
    assert PASSWORD not in line
