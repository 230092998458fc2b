"""The ACL user of docs/operate.md: the service, doctor and users work with exactly its commands."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from redis import Redis

from sesiones.cli import doctor
from sesiones.redis_client import connect
from sesiones.sesion import StoreUnavailable
from sesiones.settings import Settings
from sesiones.store import SessionStore
from tests.deployment.test_acl import forbidden, store_at, use
from tests.harness.redis_server import RedisServer, free_port
from tests.harness.stores import replica_of

pytestmark = pytest.mark.anyio

OPERATE = (Path(__file__).parents[2] / "docs" / "operate.md").read_text("utf-8")
(RULE,) = re.findall(r"^user sesiones .*(?:\n  .*)*", OPERATE, re.MULTILINE)
COMMANDS = re.findall(r"\+(\S+)", RULE)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """With a replica, for WAIT."""
    with RedisServer(port=str(free_port())) as server, replica_of(server):
        with Redis(unix_socket_path=str(server.socket)) as redis:
            words = RULE.replace("\\\n", " ").split()
            redis.execute_command("ACL", "SETUSER", *words[1:])
        yield server


@pytest.fixture
def admin(server: RedisServer) -> Iterator["Redis"]:
    with Redis(unix_socket_path=str(server.socket)) as redis:
        redis.flushall()
        redis.script_flush()
        yield redis


async def missed(server: RedisServer, admin: "Redis") -> list[str]:
    """What does not work, of all that there is to do."""
    url = f"redis://sesiones:PASSWORD@127.0.0.1:{server.port}"
    try:
        async with store_at(url) as store:
            await use(store, admin)
            await store.create(7, "laptop")
            return [text async for text in examined(url, store)]
    except StoreUnavailable as error:
        return [str(error)]


async def examined(url: str, store: SessionStore) -> AsyncIterator[str]:
    settings = Settings(redis_url=url, wait_replicas=1, redis_timeout=5.0)
    async with aclosing(connect(url, 5.0)) as commands:
        findings = [each async for each in doctor.examine(commands, settings)]
    findings.append(await doctor.examine_prefix(store, settings))
    findings.append(await doctor.examine_store(store))
    findings.append(await doctor.examine_keys(store, settings, lambda _: None))
    for finding in findings:
        if finding.level != "ok" or "not known" in finding.text:
            yield f"{finding.subject}: {finding.text}"
    assert len(await store.sessions(7, deep=True)) == 1
    assert await store.end_user(7, deep=True) == 1


async def test_these_commands_are_enough(server: RedisServer, admin: "Redis") -> None:
    assert len(COMMANDS) > 20
    assert await missed(server, admin) == []


@pytest.mark.parametrize("command", COMMANDS)
async def test_each_of_them_is_needed(server: RedisServer, admin: "Redis", command: str) -> None:
    with forbidden(admin, command):
        assert await missed(server, admin) != []


async def test_nothing_else_is_allowed(server: RedisServer, admin: "Redis") -> None:
    for command in (
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("PING",),
        ("CONFIG", "SET", "maxmemory", "1"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
        ("CLUSTER", "SHARDS"),
        ("GET", "sesiones:{AA}:n"),
        ("HSET", "otros:{AA}:s:x", "a", "b"),
    ):
        assert admin.acl_dryrun("sesiones", *command) != b"OK"
