"""docs/acl.conf: the service works with exactly these commands and keys, and no fewer."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.crc import key_slot

from sesiones import tokens
from sesiones.sesion import Sesion, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.redis_server import RedisCluster, RedisServer, free_port
from tests.harness.stores import open_store, replica_of

pytestmark = pytest.mark.anyio

ACL = Path(__file__).parents[2] / "docs" / "acl.conf"
COMMANDS = re.findall(r"\+(\S+)", re.findall(r"^user .*$", ACL.read_text("utf-8"), re.M)[0])
OF_A_CLUSTER = {"cluster|slots", "asking"}


@asynccontextmanager
async def store_at(url: str, **options: Any) -> AsyncIterator[SessionStore]:
    defaults = {"touch_seconds": 0, "max_per_user": 2, "timeout_seconds": 1, "wait_replicas": 1}
    store = open_store(url, **defaults | options)
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """With a replica."""
    with RedisServer(port=str(free_port()), include=str(ACL)) as server, replica_of(server):
        yield server


@pytest.fixture
def admin(server: RedisServer) -> Iterator["Redis"]:
    with Redis(unix_socket_path=str(server.socket)) as redis:
        redis.flushall()
        redis.script_flush()
        yield redis


def url_of(server: RedisServer) -> str:
    return f"redis://sesiones:PASSWORD@127.0.0.1:{server.port}/1"


@contextmanager
def forbidden(admin: "Redis", command: str) -> Iterator[None]:
    def acl_setuser(rule: str) -> None:
        admin.execute_command("ACL", "SETUSER", "sesiones", rule)  # type: ignore[no-untyped-call]

    acl_setuser(f"-{command}")
    try:
        yield
    finally:
        acl_setuser(f"+{command}")


async def use(store: SessionStore, admin: "Redis") -> None:
    """All that the service does."""
    await store.probe(1)
    admin.script_flush()  # as on a server that has just taken over
    for _ in range(3):  # the first one has to go
        sesion = await store.create(7, "laptop")
    found = await store.find(sesion.Token_Sesion)
    assert found is not None
    later = found.Fecha_Expiracion + 60
    assert isinstance(await store.update(found._replace(Fecha_Expiracion=later)), Sesion)
    other = await store.create(7, "phone")
    assert await store.end(sesion.Token_Sesion, other.Token_Sesion) == 1
    try:
        admin.config_set("min-replicas-to-write", 2)
        assert await store.find(sesion.Token_Sesion) is not None
    finally:
        admin.config_set("min-replicas-to-write", 0)
    assert await store.end_all(sesion.Token_Sesion, sesion.Token_Sesion) == 1


async def test_these_commands_are_enough(server: RedisServer, admin: "Redis") -> None:
    assert len(COMMANDS) > 15
    async with store_at(url_of(server)) as store:
        await use(store, admin)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in OF_A_CLUSTER])
async def test_without_any_of_them_it_fails(
    server: RedisServer, admin: "Redis", command: str
) -> None:
    with forbidden(admin, command):
        async with store_at(url_of(server)) as store:
            with pytest.raises(StoreUnavailable):
                await use(store, admin)


@pytest.mark.parametrize("command", ["hset", "zadd", "incrby", "del", "zremrangebyscore"])
async def test_without_any_of_them_it_is_not_ready(
    server: RedisServer, admin: "Redis", command: str
) -> None:
    with forbidden(admin, command):
        async with store_at(url_of(server)) as store:
            with pytest.raises(StoreUnavailable, match="may not"):
                await store.probe(1)


async def test_no_other_keys(server: RedisServer, admin: "Redis") -> None:
    async with store_at(url_of(server), key_prefix="otros") as store:
        with pytest.raises(StoreUnavailable):
            await store.create(7, "laptop")
        with pytest.raises(StoreUnavailable, match="may not"):
            await store.probe(1)


async def test_a_cluster_needs_two_more(admin: "Redis") -> None:
    with RedisCluster(2, include=str(ACL)) as cluster:
        url = cluster.url.replace("//", "//sesiones:PASSWORD@")
        source, target = cluster.servers

        async def find() -> Sesion | None:
            async with store_at(url) as store:
                return await store.find(sesion.Token_Sesion)

        async with store_at(url, wait_replicas=0) as store:
            user = next(u for u in range(99) if slot_of(u) < 8192)
            sesion = await store.create(user, "laptop")
        cluster.begin_move(slot_of(user), source, target)
        keys = cluster.run(source, "CLUSTER", "GETKEYSINSLOT", slot_of(user), 9)
        cluster.move_keys(source, target, *keys)
        assert await find() is not None
        for command in OF_A_CLUSTER:
            with ExitStack() as stack:
                for client in cluster.clients.values():
                    stack.enter_context(forbidden(client, command))
                with pytest.raises(StoreUnavailable):
                    await find()
        assert await find() is not None


def slot_of(user: int) -> int:
    return key_slot(tokens.user_bucket(user).encode())
