"""What docs/operate.md says of the Redis user of a node with a near-cache: with those permissions
the cache answers, and without any one of them every check asks Redis."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from redis import Redis

from sesiones.cli.near_cache import examine_channel, examine_near_cache
from sesiones.metrics import CACHE_LOOKUPS, cell
from sesiones.redis_client import connect
from sesiones.settings import Settings
from sesiones.store import SessionStore
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer
from tests.harness.stores import open_store

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs"


def rules(page: str, pattern: str) -> str:
    """What the first line of the page that matches has in its group."""
    return str(re.findall(f"^ *{pattern}$", (DOCS / page).read_text("utf-8"), re.MULTILINE)[0])


BASE = rules("acl.conf", "user sesiones (.*)")
CACHE = rules("operate.md", "ACL SETUSER sesiones (.*)")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(port=str(free_port())) as server:
        yield server


def become(server: RedisServer, granted: str) -> None:
    """Make the Redis user `sesiones` anew."""
    with Redis(unix_socket_path=str(server.socket)) as admin:
        admin.execute_command("ACL", "SETUSER", "sesiones", "reset", *granted.split())


def hits(store: SessionStore) -> float:
    return store.metrics.sums()[cell(CACHE_LOOKUPS, "hit")]


async def use(store: SessionStore) -> None:
    """Log in, check until the cache answers or for a while, and log out."""
    sesion = await store.create(7, "laptop")
    for _ in range(20):
        assert await store.find(sesion.Token_Sesion) == sesion
        if hits(store):
            break
        await asyncio.sleep(0.05)
    assert await store.end(sesion.Token_Sesion, sesion.Token_Sesion) == 1
    assert await store.find(sesion.Token_Sesion) is None


def url_of(server: RedisServer) -> str:
    return f"redis://sesiones:PASSWORD@127.0.0.1:{server.port}/0"


def store_of(server: RedisServer) -> SessionStore:
    return open_store(url_of(server), touch_seconds=30, cache_seconds=30)


async def test_documented_permissions_are_enough_for_the_cache(server: RedisServer) -> None:
    become(server, f"{BASE} {CACHE}")
    async with aclosing(store_of(server)) as store:
        await use(store)
        assert hits(store) > 0


@pytest.mark.parametrize("missing", ["", *CACHE.split()])
async def test_without_any_of_them_every_check_asks_redis(
    server: RedisServer, missing: str
) -> None:
    granted = [rule for rule in CACHE.split() if missing and rule != missing]
    become(server, " ".join([BASE, *granted]))
    async with aclosing(store_of(server)) as store:
        await use(store)
        assert hits(store) == 0


async def test_without_them_redis_logs_no_refused_command(server: RedisServer) -> None:
    """In ACL LOG, each would look like an intruder's."""
    become(server, BASE)
    with Redis(unix_socket_path=str(server.socket)) as admin:
        admin.acl_log_reset()
        async with aclosing(open_store(url_of(server), touch_seconds=30)) as store:
            await use(store)
        assert admin.acl_log() == []


async def test_they_are_two_commands_and_one_channel(server: RedisServer) -> None:
    assert CACHE.split() == ["+publish", "+subscribe", "&sesiones:invalidated"]
    become(server, f"{BASE} {CACHE}")
    with Redis(unix_socket_path=str(server.socket)) as admin:
        for command in (
            ("PUBLISH", "otros:invalidated", "x"),
            ("SUBSCRIBE", "otros:invalidated"),
            ("PSUBSCRIBE", "sesiones:*"),
            ("PUBSUB", "CHANNELS"),
            ("SPUBLISH", "sesiones:invalidated", "x"),
        ):
            assert admin.acl_dryrun("sesiones", *command) != b"OK"


async def test_operators_get_the_same(server: RedisServer) -> None:
    assert rules("operate.md", "ACL SETUSER sesiones-operator (.*)") == CACHE
    become(server, f"{rules('acl.conf', 'user sesiones-operator (.*)')} {CACHE} >PASSWORD")
    settings = Settings(redis_url=url_of(server), cache_seconds=30, touch_seconds=30)
    async with aclosing(connect(settings.redis_url, 5)) as commands:
        (execute,) = (await commands.masters()).values()
        finding = await examine_channel(execute, settings)
    assert (finding.level, finding.advice) == ("ok", "")
    async with aclosing(connect(settings.redis_url, 5)) as commands:
        assert (await examine_near_cache(commands, settings)).level == "ok"
