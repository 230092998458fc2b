"""The Redis users of docs/acl.conf, with exactly the commands and keys that are needed: the one of
the service, and the one of operators, for the commands."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from sesiones import tokens
from sesiones.cli import doctor
from sesiones.redis_client import connect
from sesiones.sesion import Login, Sesion, StoreUnavailable
from sesiones.settings import Settings
from sesiones.store import SessionStore
from sesiones.store.operators import Ending
from tests.harness.ports import free_port
from tests.harness.records import slot_of
from tests.harness.redis_server import RedisCluster, RedisServer
from tests.harness.stores import open_store, replica_of

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs"
ACL = (DOCS / "acl.conf").read_text("utf-8")
RULES = {words[1]: words[2:] for words in map(str.split, ACL.splitlines())}
COMMANDS = {user: [word[1:] for word in rule if word[0] == "+"] for user, rule in RULES.items()}
SERVICE, OPERATOR = "sesiones", "sesiones-operator"
OF_A_CLUSTER = {"cluster|slots", "asking"}


@asynccontextmanager
async def store_at(url: str, **options: Any) -> AsyncIterator[SessionStore]:
    defaults = {
        "touch_seconds": 0,
        "max_per_user": 2,
        "timeout_seconds": 1,
        "wait_replicas": 1,
        "why_seconds": 60,
    }
    async with aclosing(open_store(url, **defaults | options)) as store:
        yield store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server with the file as its aclfile, just as it is, and a replica, for WAIT."""
    users = tmp_path_factory.mktemp("acl") / "users.acl"
    users.write_text(ACL)
    with RedisServer(port=str(free_port()), aclfile=str(users)) as server, replica_of(server):
        yield server


@pytest.fixture
def admin(server: RedisServer) -> Iterator["Redis"]:
    with server.client() as redis:
        redis.flushall()
        redis.script_flush()
        yield redis


def url_of(server: RedisServer, user: str = SERVICE) -> str:
    """Its passwords are those that the file stands for. A database that needs SELECT."""
    (password,) = (word[1:] for word in RULES[user] if word[0] == ">")
    return f"redis://{user}:{password}@127.0.0.1:{server.port}/1"


@contextmanager
def forbidden(admin: "Redis", user: str, command: str) -> Iterator[None]:
    def acl_setuser(rule: str) -> None:
        admin.execute_command("ACL", "SETUSER", user, rule)  # type: ignore[no-untyped-call]

    acl_setuser(f"-{command}")
    try:
        yield
    finally:
        acl_setuser(f"+{command}")


async def serve(server: RedisServer, admin: "Redis") -> None:
    """All that the service does. Raises StoreUnavailable."""
    async with store_at(url_of(server, SERVICE)) as store:
        await check_and_write(store, admin)
        await manage(store)


async def check_and_write(store: SessionStore, admin: "Redis") -> None:
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


async def manage(store: SessionStore) -> None:
    """What the owner of sessions and a backend do with them."""
    one = await store.create(7, "laptop")
    two = await store.create(7, "phone", Login(Sustituye=1, Vida_Maxima=60))
    listed = await store.list_sessions(one.Token_Sesion)
    assert listed is not None
    assert len(listed) == len(await store.sessions(7)) == 2
    assert await store.end_one(one.Token_Sesion, two.ID_Sesion) == 1
    assert await store.end_one(one.Token_Sesion, two.ID_Sesion) == 0
    login = Login(Token_Anterior=one.Token_Sesion, Cerrar_Otras=1)
    three = await store.create(7, "laptop", login)
    assert await store.end_others(three.Token_Sesion) == 0
    other = await store.create(8, "phone", Login(Token_Anterior=three.Token_Sesion))
    await store.revoke(other.Token_Sesion)
    await store.revoke(other.Token_Sesion)
    await store.create(7, "laptop")
    assert await store.end_user(7) == 1


async def operate(server: RedisServer, admin: "Redis") -> None:
    """All that the operators' commands do, with sessions of the service. Raises StoreUnavailable,
    for a finding too."""
    async with store_at(url_of(server, SERVICE)) as store:
        for _ in range(2):
            await store.create(7, "laptop")
    admin.script_flush()
    url = url_of(server, OPERATOR)
    settings = Settings(redis_url=url, wait_replicas=1, redis_timeout=5.0)
    async with aclosing(connect(url, 5.0)) as commands:
        findings = [each async for each in doctor.examine(commands, settings)]
    async with store_at(url) as store:
        findings.append(await doctor.examine_prefix(store, settings))
        findings.append(await doctor.examine_store(store))
        findings.append(await doctor.examine_keys(store, settings, lambda _: None))
        for finding in findings:
            if finding.level != "ok" or "not known" in finding.text:
                raise StoreUnavailable(f"{finding.subject}: {finding.text}")
        (one, _) = await store.sessions(7)
        assert await store.end_user(7, one.ID_Sesion) == 1
        assert len(await store.sessions(7, deep=True)) == 1
        assert await store.end_user(7, deep=True) == 1
    async with store_at(url_of(server, SERVICE)) as store:
        made = [await store.create(user, "laptop") for user in (7, 8)]
    async with store_at(url) as store:
        operators = store.operators()
        assert [counts.sessions async for counts in operators.survey()][-1] == 2
        assert len(await operators.named(tokens.fingerprint(made[0].Token_Sesion))) == 1
        ending = Ending()
        async for _ in operators.end_begun(None, ending):
            pass
        assert ending.sessions == 2
        assert len((await operators.why(7, deep=True))[1]) == 3
        assert len((await operators.why(one.fingerprint or ""))[1]) == 1


USES = {SERVICE: serve, OPERATOR: operate}
every_user = pytest.mark.parametrize("user", USES)


def test_file_has_the_two_users() -> None:
    assert RULES.keys() == USES.keys()
    assert len(COMMANDS[SERVICE]) > 20
    # Passwords that one of them may have must not be the other's.
    assert len({word for rule in RULES.values() for word in rule if word[0] == ">"}) == 2


@every_user
async def test_documented_commands_are_enough(
    server: RedisServer, admin: "Redis", user: str
) -> None:
    await USES[user](server, admin)


@pytest.mark.parametrize(
    ("user", "command"),
    [
        (user, command)
        for user, commands in COMMANDS.items()
        for command in commands
        if command not in OF_A_CLUSTER
    ],
)
async def test_without_any_of_them_it_fails(
    server: RedisServer, admin: "Redis", user: str, command: str
) -> None:
    with forbidden(admin, user, command), pytest.raises(StoreUnavailable):
        await USES[user](server, admin)


@pytest.mark.parametrize("command", ["hset", "zadd", "incrby", "del", "zremrangebyscore"])
async def test_without_a_write_command_it_is_not_ready(
    server: RedisServer, admin: "Redis", command: str
) -> None:
    with forbidden(admin, SERVICE, command):
        async with store_at(url_of(server)) as store:
            with pytest.raises(StoreUnavailable, match="may not"):
                await store.probe(1)


@every_user
async def test_keys_of_other_prefixes_are_refused(
    server: RedisServer, admin: "Redis", user: str
) -> None:
    async with store_at(url_of(server, user), key_prefix="otros") as store:
        with pytest.raises(StoreUnavailable):
            await store.create(7, "laptop")
        with pytest.raises(StoreUnavailable, match="may not"):
            await store.probe(1)


@every_user
async def test_no_other_command_is_allowed(admin: "Redis", user: str) -> None:
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
        assert admin.acl_dryrun(user, *command) != b"OK"


async def test_cluster_needs_two_more_commands() -> None:
    with RedisCluster(2, include=str(DOCS / "acl.conf")) as cluster:
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
                    stack.enter_context(forbidden(client, SERVICE, command))
                with pytest.raises(StoreUnavailable):
                    await find()
        assert await find() is not None
