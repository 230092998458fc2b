"""redis.conf: the server takes it, its values are in force, and sessions outlive the server."""

import asyncio
import re
import resource
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.redis_binary import find_binaries
from tests.harness.redis_server import CONFIGURATION, RedisServer
from tests.harness.stores import available, open_store

pytestmark = pytest.mark.anyio

LONGEST = "\U0001f600" * 512
"""The longest device: 512 characters of 4 bytes each."""


def settings() -> dict[str, str]:
    lines = CONFIGURATION.read_text("utf-8").splitlines()
    settings = (line.partition(" ") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in settings}


def test_every_setting_is_in_force(redis: "Redis") -> None:
    written = settings()
    # A server of its own listens on its unix socket alone.
    assert written.pop("port") == "6379"
    # As the server says them.
    written |= {"auto-aof-rewrite-min-size": str(64 * 2**20), "save": ""}
    assert len(written) > 8
    for name, value in written.items():
        assert redis.config_get(name) == {name: value}


def test_what_the_contract_wants_is_written() -> None:
    written = settings()
    assert written["appendonly"] == "yes"
    assert written["maxmemory-policy"] == "noeviction"
    assert int(written["hash-max-listpack-value"]) >= len(LONGEST.encode()) + 100
    assert written["bind"].split()[0] == "127.0.0.1"
    assert written["protected-mode"] == "yes"


def test_every_line_has_its_reason() -> None:
    """A comment stands before each setting or before the block that it is in."""
    for block in CONFIGURATION.read_text("utf-8").strip().split("\n\n"):
        assert block.startswith("#"), block


def test_the_server_is_one_that_the_contract_names(redis: "Redis") -> None:
    info: dict[str, Any] = redis.info("server")
    version = info.get("valkey_version") or info["redis_version"]
    lowest = (7, 2) if "valkey_version" in info else (7, 0)
    assert tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= lowest


async def test_a_session_stays_in_one_compact_block(redis: "Redis", store: SessionStore) -> None:
    for device in "x", "x" * 512, LONGEST:
        redis.flushall()
        session = await store.create(2**53 - 1, device)
        # Slid and updated, too.
        assert await store.find(session.Token_Sesion) is not None
        assert await store.update(session._replace(Estado_Sesion=0)) is not None
        (key,) = redis.keys("*:h:*")
        assert redis.object("encoding", key) == b"listpack"
        (index,) = redis.keys("*:u:*")
        assert redis.object("encoding", index) == b"listpack"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stop", "kill"])
async def test_sessions_outlive_the_server(number: signal.Signals, tmp_path: Path) -> None:
    """Stopped, or killed once the append-only file has been written."""
    with RedisServer(tmp_path / "data") as server:
        store = open_store(server.url)
        sessions = [await store.create(user % 10, LONGEST) for user in range(100)]
        ended = await store.create(1, "laptop")
        assert await store.end(ended.Token_Sesion, ended.Token_Sesion) == 1
        if number == signal.SIGKILL:
            server.wait_until_written()
        server.stop(number)
        server.start()
        for session in sessions:
            found = await store.find(session.Token_Sesion)
            assert found is not None
            assert (
                found._replace(
                    Ultima_Actividad=session.Ultima_Actividad,
                    Fecha_Expiracion=session.Fecha_Expiracion,
                )
                == session
            )
        assert await store.find(ended.Token_Sesion) is None
        # The index and the counter are back as well.
        assert await store.end_all(sessions[0].Token_Sesion, "") == 10
        assert (await store.create(0, "phone")).ID_Sesion > max(
            session.ID_Sesion for session in sessions if session.ID_Usuario == 0
        )
        await store.aclose()


async def test_sessions_outlive_the_folder_of_the_socket(tmp_path: Path) -> None:
    """`make run` starts a new server on the same data."""
    tokens: list[str] = []
    for number in range(2):
        with RedisServer(tmp_path / "data") as server:
            store = open_store(server.url)
            for token in tokens:
                assert await store.find(token) is not None
            tokens.append((await store.create(number, "laptop")).Token_Sesion)
            await store.aclose()


# docs/acl.conf and the full disk, as in docs/deploy/README.md and docs/reliability.md

ACL = CONFIGURATION.parent / "docs" / "acl.conf"


@pytest.fixture(params=["Redis", "Valkey"])
def binary(request: pytest.FixtureRequest) -> str:
    """The path of a server of either kind."""
    for binary in find_binaries()[0]:
        if binary.kind == request.param:
            return binary.path
    pytest.skip(f"there is no {request.param}")


def acl(server: RedisServer, *words: str) -> Any:
    """A command of ACL, by the administrator."""
    with server.client(username="admin", password="ADMIN") as administrator:
        return administrator.execute_command(*words)


async def lets_in(server: RedisServer, password: str) -> bool:
    store = open_store(f"unix://sesiones:{password}@{server.socket}")
    try:
        await store.create(7, "laptop")
    except StoreUnavailable:
        return False
    finally:
        await store.aclose()
    return True


DEPLOY = (CONFIGURATION.parent / "docs" / "deploy" / "README.md").read_text("utf-8")


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """The aclfile, made by the command of docs/deploy/README.md."""
    made = re.search(r"^\{ sed .*?^\} >/etc/redis/users.acl", DEPLOY, re.DOTALL | re.MULTILINE)
    assert made is not None
    users = tmp_path / "users.acl"
    command = made[0].replace("/etc/redis/users.acl", str(users))
    for there, here in ("a-password", "OLD"), ("another-password", "OPERATOR"):
        command = command.replace(f">{there}", f">{here}")
    command = command.replace("a-third-password", "ADMIN")
    subprocess.run(["sh", "-ec", command], cwd=CONFIGURATION.parent, check=True)
    return users


async def test_sessions_outlive_a_restart_with_the_documented_users(
    binary: str, users: Path
) -> None:
    """Redis 7.0 reads transactions of the append-only file with the permissions of `default`."""
    with RedisServer(binary=binary, aclfile=str(users)) as server:
        async with open_store(server.url.replace("//", "//sesiones:OLD@", 1)) as store:
            kept, ended = [(await store.create(7, "laptop")).Token_Sesion for _ in range(2)]
            assert await store.end(kept, ended) == 1
            server.stop()
            server.start()
            assert await available(lambda: store.find(kept)) is not None
            assert await store.find(ended) is None
        with server.client() as stranger, pytest.raises(AuthenticationError):
            stranger.ping()


async def test_aclfile_keeps_a_new_password(binary: str, users: Path) -> None:
    """Changed by the commands of docs/deploy/README.md; CONFIG REWRITE does no harm."""
    with RedisServer(binary=binary, aclfile=str(users)) as server:
        assert await lets_in(server, "OLD")
        add, remove = re.findall(r"^```\n(ACL .*?)^```$", DEPLOY, re.DOTALL | re.MULTILINE)
        for commands, lets_in_old in (add, True), (remove, False):
            for line in commands.splitlines():
                words = line.replace("new-password", "NEW").replace("a-password", "OLD").split()
                acl(server, *words)
            assert await lets_in(server, "OLD") is lets_in_old
            assert await lets_in(server, "NEW")
        acl(server, "CONFIG", "REWRITE")
        for _ in range(2):
            assert not await lets_in(server, "OLD")
            assert await lets_in(server, "NEW")
            server.stop()
            server.start()


async def test_included_acl_breaks(
    binary: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Why it has to be an aclfile: after ACL SETUSER the old password is back with a restart, and
    after CONFIG REWRITE there is none."""
    users = tmp_path / "acl.conf"
    rules = ACL.read_text("utf-8").replace(">PASSWORD", ">OLD")
    users.write_text(f"{rules}user admin on >ADMIN ~* &* +@all\n")
    with RedisServer(binary=binary, include=str(users)) as server:
        acl(server, "ACL", "SETUSER", "sesiones", ">NEW", "<OLD")
        assert await lets_in(server, "NEW")
        server.stop()
        server.start()
        assert await lets_in(server, "OLD")
        assert not await lets_in(server, "NEW")
        acl(server, "CONFIG", "REWRITE")
        server.stop()
        with pytest.raises(RuntimeError):
            server.start()
    assert "Duplicate user found" in capfd.readouterr().err


@contextmanager
def full_disk(server: RedisServer) -> Iterator[None]:
    """No file of the server grows any more. (It gets EFBIG, where a full disk gives ENOSPC.)"""
    before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)


@pytest.fixture
def disk_binary(binary: str, tmp_path: Path) -> str:
    """A server that a file's excess of its size does not kill: the system would, by a signal."""
    program = tmp_path / "server"
    program.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec '{binary}' \"$@\"\n")
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def disk_server(disk_binary: str, tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "data", binary=disk_binary) as server:
        yield server


async def refused(ask: Callable[[], Awaitable[Any]]) -> bool:
    try:
        await ask()
    except StoreUnavailable as error:
        return "MISCONF" in str(error)
    return False


async def until(ask: Callable[[], Awaitable[bool]], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not await ask():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_full_disk_under_the_append_only_file_stops_writes_but_not_checks(
    disk_server: RedisServer,
) -> None:
    store = open_store(disk_server.url, touch_seconds=0)
    phone, laptop = [await store.create(7, name) for name in ("phone", "laptop")]
    own, other = phone.Token_Sesion, laptop.Token_Sesion

    with full_disk(disk_server):
        # The first writes are taken: Redis sees the fault when it writes to its file.
        await until(lambda: refused(lambda: store.create(8, "tablet")))
        assert await store.find(own) is not None
        assert await refused(lambda: store.end(own, other))
        assert await refused(lambda: store.end_all(own, other))
        assert await refused(lambda: store.end_user(7))
        assert await refused(lambda: store.update(phone._replace(Estado_Sesion=0)))
        assert await store.find(other) is not None

    # Redis tries again each second, and forgets nothing of what it had taken.
    async def ends() -> bool:
        return not await refused(lambda: store.end(own, other))

    await until(ends)
    assert await store.find(other) is None
    await store.aclose()


async def test_way_out_of_a_full_disk_is_to_do_without_the_append_only_file(
    disk_server: RedisServer,
) -> None:
    store = open_store(disk_server.url)
    phone, laptop = [await store.create(7, name) for name in ("phone", "laptop")]
    own, other = phone.Token_Sesion, laptop.Token_Sesion
    with disk_server.client() as admin:
        with full_disk(disk_server):
            await until(lambda: refused(lambda: store.create(8, "tablet")))
            admin.config_set("appendonly", "no")
            assert await store.end(own, other) == 1
            assert await store.find(other) is None
            assert await store.find(own) is not None
        admin.config_set("appendonly", "yes")
        await until(lambda: asyncio.sleep(0, persisted(admin)))
    disk_server.stop(signal.SIGKILL)
    disk_server.start()
    assert await store.find(other) is None
    assert await store.find(own) is not None
    await store.aclose()


def persisted(admin: "Redis") -> bool:
    state = admin.info("persistence")
    return bool(
        state["aof_rewrite_in_progress"] == 0
        and state["aof_rewrite_scheduled"] == 0
        and state["aof_last_bgrewrite_status"] == "ok"
        and state["aof_enabled"] == 1
    )


async def test_without_the_way_out_undone_a_restart_brings_sessions_back(
    disk_server: RedisServer,
) -> None:
    """While the append-only file is off, what ends is on no disk: docs/reliability.md says so."""
    store = open_store(disk_server.url)
    phone, laptop = [await store.create(7, name) for name in ("phone", "laptop")]
    with disk_server.client() as admin:
        admin.config_set("appendonly", "no")
    assert await store.end(phone.Token_Sesion, laptop.Token_Sesion) == 1
    await store.aclose()
    disk_server.stop(signal.SIGKILL)
    disk_server.start()
    # A store without the tombstone of the session does not end it again.
    store = open_store(disk_server.url)
    assert await store.find(laptop.Token_Sesion) is not None
    await store.aclose()


async def test_appendfsync_always_ends_redis_on_a_full_disk(
    disk_binary: str, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "data", binary=disk_binary, appendfsync="always") as server:
        store = open_store(server.url, timeout_seconds=1)
        await store.create(7, "laptop")
        with full_disk(server):
            with pytest.raises(StoreUnavailable):
                await store.create(7, "phone")
            server.process.wait(timeout=5)
        await store.aclose()
