"""The tag of a script's reply: should a connection hand callers each other's replies, whatever the
bug, each of those calls is a 503, the connections are closed and the log says so. No caller ever
has another user's session."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest
from redis.exceptions import NoScriptError

from sesiones import tokens
from sesiones.redis_client import Commands, connect
from sesiones.redis_client import cluster as clusters
from sesiones.sesion import Sesion, StoreUnavailable
from sesiones.store import SessionStore, scripts
from tests.harness.redis_server import RedisCluster, RedisServer, free_port
from tests.harness.stores import WrappedCommands, available, open_store, store_on

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

TIMEOUT_SECONDS = 0.5
ERROR = "a connection to Redis is out of step"


class Mixed(WrappedCommands):
    """Commands that hand the two calls that are out each other's reply (``swap``), or each call
    the reply of the one before it (``shift``); while ``on`` is set."""

    def __init__(self, commands: Commands, how: str) -> None:
        super().__init__(commands)
        self._how = how
        self.on = False
        self.mixed = self.resets = 0
        self._held: asyncio.Future[Any] | None = None
        self._before: Any = None

    def reset(self) -> None:
        self.resets += 1
        self.commands.reset()

    async def execute(self, *arguments: Any, on_reply: Any = None, **how: Any) -> Any:
        reply = await self.commands.execute(*arguments, **how)
        if self.on and arguments[0] in ("EVALSHA", "EVAL"):
            reply = await self._mix(reply)
        if on_reply:
            on_reply(reply)
        return reply

    async def execute_on_master(self, *arguments: Any, **how: Any) -> Any:
        reply = await self.commands.execute_on_master(*arguments, **how)
        return await self._mix(reply) if self.on else reply

    async def _mix(self, reply: Any) -> Any:
        self.mixed += 1
        if self._how == "shift":
            reply, self._before = self._before, reply
            return reply
        if self._held is None:
            self._held = asyncio.get_running_loop().create_future()
            mine = self._held
            mine.reply = reply  # type: ignore[attr-defined]
            return await mine
        other, self._held = self._held, None
        other.set_result(reply)
        return other.reply  # type: ignore[attr-defined]


@pytest.fixture(scope="module", params=["server", "cluster"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cluster":
        with RedisCluster(3) as cluster:
            yield cluster.url
    else:
        with RedisServer(port=str(free_port())) as server:
            yield f"redis://127.0.0.1:{server.port}"


@pytest.fixture(params=["swap", "shift"])
async def mixed(url: str, request: pytest.FixtureRequest) -> AsyncIterator[Mixed]:
    commands = Mixed(connect(url, TIMEOUT_SECONDS), request.param)
    yield commands
    await commands.aclose()


OPERATIONS: dict[str, Callable[[SessionStore, Sesion], Coroutine[Any, Any, Any]]] = {
    "find": lambda store, own: store.find(own.Token_Sesion),
    "create": lambda store, own: store.create(own.ID_Usuario, "another"),
    "update": lambda store, own: store.update(own._replace(Dispositivo="renamed")),
    "end": lambda store, own: store.end(own.Token_Sesion, own.Token_Sesion),
    "end_all": lambda store, own: store.end_all(own.Token_Sesion, own.Token_Sesion),
    "sessions": lambda store, own: store.sessions(own.ID_Usuario),
    "end_user": lambda store, own: store.end_user(own.ID_Usuario),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_reply_of_another_call_is_unavailable(
    mixed: Mixed, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_on(mixed, timeout_seconds=TIMEOUT_SECONDS)
    users = [random.randrange(10**9) for _ in range(2)]
    own = [await store.create(user, f"of {user}") for user in users]
    caplog.clear()
    caplog.set_level(logging.INFO)
    mixed.on = True
    # One after the other: checks of one turn would share a call.
    first = asyncio.create_task(OPERATIONS[operation](store, own[0]))
    await asyncio.sleep(0.05)
    results = await asyncio.gather(
        first, OPERATIONS[operation](store, own[1]), return_exceptions=True
    )
    mixed.on = False
    assert mixed.mixed >= 2
    assert all(isinstance(result, StoreUnavailable) for result in results), results
    assert mixed.resets >= 1
    records = [record for record in caplog.records if record.message.startswith(ERROR)]
    assert records
    assert all(record.levelno == logging.ERROR for record in records)
    # What a callback made of it: no tombstone and no line for what another call has ended.
    assert not [record for record in caplog.records if record.message.startswith("ended")]
    assert not [record for record in caplog.records if record.message.startswith("created")]
    keys = [
        f"sesiones:{{{tokens.bucket(s.Token_Sesion)}}}:s:{tokens.digest(s.Token_Sesion)}"
        for s in own
    ]
    assert not store._tombstones.any_of(keys)
    # And then it is as good as new.
    made = await store.create(users[0], "after")
    found = await store.find(made.Token_Sesion)
    assert found is not None
    assert (found.ID_Usuario, found.Dispositivo) == (users[0], "after")
    await store.aclose()


async def untagged(
    execute: Any, script: scripts.Script, keys: list[str], *arguments: Any, **how: Any
) -> Any:
    """scripts.call() without the comparison of the tags."""
    declared = keys if len(keys) == 1 or not script.cross_slot else ()
    rest = (len(declared), *declared, *arguments, b"tag")
    if on_reply := how.get("on_reply"):
        how["on_reply"] = lambda tagged: on_reply(tagged[1])
    try:
        tagged = await execute("EVALSHA", script.sha, *rest, keys=keys, **how)
    except NoScriptError:
        tagged = await execute("EVAL", script.source, *rest, keys=keys, **how)
    return tagged[1] if len(tagged) > 1 else None


async def test_without_the_tag_a_caller_has_another_users_session(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So these tests would find out that the tag is not compared."""
    mixed = Mixed(connect(url, TIMEOUT_SECONDS), "swap")
    store = store_on(mixed, timeout_seconds=TIMEOUT_SECONDS)
    own = [await store.create(user, f"of {user}") for user in (11, 12)]
    monkeypatch.setattr(scripts, "call", untagged)
    mixed.on = True
    first = asyncio.create_task(store.find(own[0].Token_Sesion))
    await asyncio.sleep(0.05)
    found = await asyncio.gather(first, store.find(own[1].Token_Sesion))
    assert [sesion and sesion.ID_Usuario for sesion in found] == [12, 11]
    mixed.on = False
    await store.aclose()


# On the way: a relay repeats a reply, or swallows one.


def reply_length(data: bytes) -> int | None:
    """The bytes of the first reply of RESP2; None when it is not all there."""
    end = data.find(b"\r\n")
    if end < 0:
        return None
    length = end + 2
    kind, number = data[:1], data[1:end]
    if kind == b"$" and int(number) >= 0:
        length += int(number) + 2
    if kind == b"*":
        for _ in range(int(number)):
            part = reply_length(data[length:])
            if part is None:
                return None
            length += part
    return length if length <= len(data) else None


class Relay:
    """A port before a server. ``spoil``: how many of the next replies come twice, or not at all."""

    def __init__(self, port: int, how: str) -> None:
        self._port = port
        self._how = how
        self.spoil = self.spoilt = 0
        self.connections = 0
        self._pumps: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Relay":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await asyncio.sleep(0)  # until the transports are closed

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._pumps.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)

        async def forth() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    server_writer.write(data)
            server_writer.close()

        async def back() -> None:
            buffer = b""
            with contextlib.suppress(OSError):
                while data := await server_reader.read(65536):
                    buffer += data
                    while buffer and (length := reply_length(buffer)):
                        reply, buffer = buffer[:length], buffer[length:]
                        times = 1
                        # Only replies of scripts that found a session: the others look alike.
                        if self.spoil and reply[:1] == b"*" and len(reply) > 60:
                            self.spoil -= 1
                            self.spoilt += 1
                            times = 2 if self._how == "twice" else 0
                        writer.write(reply * times)
            writer.close()

        try:
            await asyncio.gather(forth(), back())
        finally:
            for end in writer, server_writer:
                end.transport.abort()


@contextlib.asynccontextmanager
async def relayed(
    url: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[SessionStore, list[Relay]]]:
    """A store that reaches every server of the URL through a relay of its own."""
    scheme, _, addresses = url.partition("://")
    ports = [int(address.rpartition(":")[2]) for address in addresses.split(",")]
    async with contextlib.AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(Relay(port, how)) for port in ports]
        relay_of = {port: relay.port for port, relay in zip(ports, relays, strict=True)}
        really = clusters._address

        def address(node: Any, asked: str) -> tuple[str, int]:
            host, port = really(node, asked)
            return host, relay_of[port]

        monkeypatch.setattr(clusters, "_address", address)
        through = f"{scheme}://" + ",".join(f"127.0.0.1:{relay.port}" for relay in relays)
        store = await stack.enter_async_context(
            open_store(through, timeout_seconds=TIMEOUT_SECONDS, touch_seconds=60)
        )
        yield store, relays


async def check_beside_a_spoilt_reply(
    store: SessionStore, relays: list[Relay], users: int = 120, replies: int = 3
) -> list[tuple[int, Any]]:
    """Each user, and what find() gave for its token, of checks at any moment while each relay
    spoils so many replies."""
    own = await asyncio.gather(
        *(available(partial(store.create, user, f"of {user}"), 20) for user in range(users))
    )
    outcomes: list[tuple[int, Any]] = []

    async def check(user: int) -> None:
        for _ in range(1800 // users):
            try:
                found: Any = await store.find(own[user].Token_Sesion)
            except StoreUnavailable as error:
                found = error
            outcomes.append((user, found))
            await asyncio.sleep(random.random() * 0.02)

    for relay in relays:
        relay.spoil = replies
    await asyncio.gather(*(check(user) for user in range(users)))
    assert sum(relay.spoilt for relay in relays) >= 3
    return outcomes


@pytest.mark.parametrize("how", ["twice", "never"])
async def test_a_reply_that_comes_twice_or_never_gives_no_caller_anothers_session(
    url: str, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with relayed(url, how, monkeypatch) as (store, relays):
        outcomes = await check_beside_a_spoilt_reply(store, relays)
        wrong = [
            (user, found)
            for user, found in outcomes
            if not isinstance(found, StoreUnavailable)
            and (found is None or found.ID_Usuario != user)
        ]
        assert wrong == []
        assert sum(isinstance(found, Sesion) for _, found in outcomes) > len(outcomes) / 3
        assert any(relay.connections > 1 for relay in relays)
        if any(isinstance(found, StoreUnavailable) for _, found in outcomes):
            assert ERROR in caplog.text or "Redis is unavailable" in caplog.text


async def test_without_the_tag_a_reply_that_comes_twice_gives_another_users_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scripts, "call", untagged)
    with RedisServer(port=str(free_port())) as server:
        url = f"redis://127.0.0.1:{server.port}"
        async with relayed(url, "twice", monkeypatch) as (store, relays):
            # Few users: a call carries a check or two, and the next one's reply has the same shape.
            outcomes = await check_beside_a_spoilt_reply(store, relays, users=9, replies=200)
            assert [user for user, found in outcomes if getattr(found, "ID_Usuario", user) != user]
