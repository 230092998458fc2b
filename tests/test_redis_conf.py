"""redis.conf: the server takes it, its values are in force, and sessions outlive the server."""

import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from scripts.redis_server import CONFIGURATION, RedisServer
from sesiones.store import SessionStore
from tests.conftest import open_store

pytestmark = pytest.mark.anyio

LONGEST = "\U0001f600" * 512
"""The longest device: 512 characters of 4 bytes each."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> Iterator["Redis"]:
    with Redis(unix_socket_path=str(server.socket), decode_responses=True) as client:
        yield client


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[SessionStore]:
    store = open_store(server.url)
    yield store
    await store.aclose()


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
    assert int(written["hash-max-listpack-value"]) >= len(LONGEST.encode())
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
        (key,) = redis.keys("*:s:*")
        assert redis.object("encoding", key) == "listpack"
        (index,) = redis.keys("*:u:*")
        assert redis.object("encoding", index) == "listpack"


@pytest.mark.parametrize(
    ("number", "pause"), [(signal.SIGTERM, 0.0), (signal.SIGKILL, 1.1)], ids=["stop", "kill"]
)
async def test_sessions_outlive_the_server(
    number: signal.Signals, pause: float, tmp_path: Path
) -> None:
    """Stopped, or killed at least the second after that the file is flushed each second."""
    with RedisServer(tmp_path / "data") as server:
        store = open_store(server.url)
        sessions = [await store.create(user % 10, LONGEST) for user in range(100)]
        ended = await store.create(1, "laptop")
        assert await store.end(ended.Token_Sesion, ended.Token_Sesion) == 1
        time.sleep(pause)  # noqa: ASYNC251 - nothing else is to run
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
    """As `make run` does it: a new server each time, the data stays."""
    tokens: list[str] = []
    for number in range(2):
        with RedisServer(tmp_path / "data") as server:
            store = open_store(server.url)
            for token in tokens:
                assert await store.find(token) is not None
            tokens.append((await store.create(number, "laptop")).Token_Sesion)
            await store.aclose()
