"""The seven hazards of the contract, forced in races on a real server.

A scenario is what one user goes through, on several nodes at once; it returns what went wrong.
run() plays it for thousands of users, many at a time, while an observer on a connection of its own
looks at everything in Redis. Each scenario is also run with a naive variant that does what other
session stores do, and has to catch it: so the tests can fail.

SESIONES_TEST_ROUNDS multiplies the rounds, for longer runs.
"""

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from sesiones import tokens
from sesiones.redis_client import Argument, Commands, connect
from sesiones.sesion import BadDates, Immutable, Refusal, Sesion, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.records import base, counter_key, digest, index_key, lua, session_key
from tests.harness.redis_server import RedisServer
from tests.harness.stores import WrappedCommands, store_on

pytestmark = pytest.mark.anyio

ROUNDS = max(1, int(3000 * float(os.environ.get("SESIONES_TEST_ROUNDS", "1"))))
"""Users per scenario."""
AT_ONCE = 50
"""Users that are served at the same time."""
NODES = 4
"""Stores, each with a connection of its own."""
DROPS = ROUNDS // 10
"""Rounds through a proxy, each of which takes two new connections."""
MAX = 43_200

PER_USER = 4

Scenario = Callable[["Nodes", int], Awaitable[list[str]]]
Wrap = Callable[[Commands], Any]

OBSERVE = """#!lua flags=no-writes
local now = tonumber(redis.call('TIME')[1])
local wrong = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local base, kind, name = string.match(key, '^([^}]*}:)(%a):?(.*)$')
  local expiry = redis.call('EXPIRETIME', key)
  if kind ~= 'n' and expiry == -1 then
    wrong[#wrong + 1] = key .. ' has no expiry'
  elseif kind == 'h' and expiry > now then
    local text = redis.call('HGET', key, '1') or ''
    local user = string.match(text, '^%d+ %d+ %d+ %d %d+ (%d+):') or ''
    local score = redis.call('ZSCORE', base .. 'u:' .. user, name)
    if tonumber(score or 0) ~= expiry then
      wrong[#wrong + 1] = key .. ' lives, and the index does not say so'
    end
  elseif kind == 'u' then
    local entries = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for i = 1, #entries, 2 do
      local score = tonumber(entries[i + 1])
      if score > now and redis.call('EXISTS', base .. 'h:' .. entries[i]) == 0 then
        wrong[#wrong + 1] = key .. ' has an entry without a session'
      end
      if score > expiry then
        wrong[#wrong + 1] = key .. ' ends before an entry'
      end
    end
  end
end
return wrong
"""
"""What must hold at any moment, looked at in one moment."""


AGE = """
local text = redis.call('HGET', KEYS[1], '1')
redis.call('HSET', KEYS[1], '1', (string.gsub(text, '^%d+ %d+',
  ARGV[3] .. ' ' .. redis.call('TIME')[1] - ARGV[3])))
redis.call('PEXPIREAT', KEYS[1], ARGV[2] * 1000 + 499)
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
"""
"""Sets a session's beginning and end. EXPIRETIME is rounded to seconds: the key outlives the
session by half a second."""


def open_node(commands: Commands, kind: type[SessionStore]) -> SessionStore:
    # Without a touch interval every check writes.
    store = store_on(commands, kind, touch_seconds=0, max_per_user=PER_USER)
    if isinstance(store, Naive):
        store.commands = commands
    return store


class Nodes:
    """The stores of several nodes of the service, and a plain connection."""

    def __init__(self, server: RedisServer, kind: type[SessionStore], wrap: Wrap | None) -> None:
        self.random = random.Random(7)
        self.redis = connect(server.url, 5.0)
        self.stores = []
        for _ in range(NODES):
            commands = connect(server.url, 5.0)
            self.stores.append(open_node(wrap(commands) if wrap else commands, kind))

    def any(self) -> SessionStore:
        return self.random.choice(self.stores)

    async def race(self, *operations: Awaitable[Any]) -> list[Any]:
        """All at once, or one or two round trips apart, in any order."""

        async def begin(operation: Awaitable[Any], delay: int) -> Any:
            for _ in range(delay):
                await self.redis.execute("PING")
            return await operation

        delays = [self.random.choice((0, 0, 1, 2, 3)) for _ in operations]
        order = self.random.sample(range(len(operations)), len(operations))
        tasks = {at: asyncio.create_task(begin(operations[at], delays[at])) for at in order}
        return await asyncio.gather(*(tasks[at] for at in range(len(operations))))

    async def exists(self, *sesiones: Sesion) -> int:
        number: int = await self.redis.execute(
            "EXISTS", *(session_key(sesion.Token_Sesion) for sesion in sesiones)
        )
        return number

    async def observe(self) -> list[str]:
        return [key.decode() for key in await self.redis.execute("EVAL", OBSERVE, 0)]

    async def until(self, moment: float) -> None:
        """Wait for a moment of Redis's clock."""
        seconds, micros = map(int, await self.redis.execute("TIME"))
        await asyncio.sleep(moment - seconds - micros / 1e6)

    async def reset(self) -> None:
        """The server as it was at first."""
        for setting in ("maxmemory", "min-replicas-to-write"):
            await self.redis.execute("CONFIG", "SET", setting, 0)
        await self.redis.execute("FLUSHALL")

    async def aclose(self) -> None:
        for store in self.stores:
            await store.aclose()
        await self.redis.aclose()


async def run(
    server: RedisServer,
    scenario: Scenario,
    *,
    kind: type[SessionStore] = SessionStore,
    wrap: Wrap | None = None,
    until: str = "",
    at_once: int = AT_ONCE,
    observed: bool = True,
) -> list[str]:
    """What went wrong, up to the batch of users in which something did that contains ``until``."""
    nodes, observer = Nodes(server, kind, wrap), Nodes(server, SessionStore, None)
    wrong: list[str] = []

    async def observe() -> None:
        while observed:
            began = time.monotonic()
            wrong.extend(await observer.observe())
            await asyncio.sleep(time.monotonic() - began)  # half the server is for the others

    try:
        for first in range(0, ROUNDS, at_once):
            await nodes.reset()
            watching = asyncio.create_task(observe())
            users = range(first, min(first + at_once, ROUNDS))
            for found in await asyncio.gather(*(scenario(nodes, user) for user in users)):
                wrong += found
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            if observed:
                wrong += await nodes.observe()
            if any(until in what for what in wrong):
                break
    finally:
        await nodes.reset()
        await nodes.aclose()
        await observer.aclose()
    return wrong


# The scenarios.


async def logout_races_slide_and_put(nodes: Nodes, user: int) -> list[str]:
    """1. Slides and PUTs of a session that is being logged out."""
    sesion = await nodes.any().create(user, "d")
    token = sesion.Token_Sesion
    later = sesion._replace(Fecha_Expiracion=sesion.Fecha_Expiracion + 100)

    async def logout() -> tuple[int | Refusal, Sesion | None]:
        ended = await nodes.any().end(token, token)
        return ended, await nodes.any().find(token)

    (ended, seen), *_ = await nodes.race(
        logout(),
        nodes.any().find(token),
        nodes.any().update(sesion._replace(Dispositivo="e")),
        nodes.any().update(later),
        nodes.any().find(token),
    )
    wrong = []
    if ended != 1:
        wrong.append(f"the logout ended {ended}")
    if seen is not None or await nodes.any().find(token) is not None:
        wrong.append("a session lives after its logout")
    if await nodes.exists(sesion):
        wrong.append("a session's key is there after its logout")
    return wrong


async def logout_all_races_create_and_slide(nodes: Nodes, user: int) -> list[str]:
    """2. Sessions that are made, used and changed while all of the user's are being ended."""
    first, second = await nodes.race(nodes.any().create(user, "a"), nodes.any().create(user, "b"))
    ended, *made = (
        await nodes.race(
            nodes.any().end_all(first.Token_Sesion, second.Token_Sesion),
            nodes.any().create(user, "c"),
            nodes.any().create(user, "d"),
            nodes.any().find(second.Token_Sesion),
            nodes.any().update(second._replace(Fecha_Expiracion=second.Fecha_Expiracion + 9)),
        )
    )[:3]
    wrong = []
    if await nodes.exists(first, second):
        wrong.append("a session lives after logoutAll")
    # Not by a check: a slide would put the session into the index.
    left = [sesion for sesion in made if await nodes.exists(sesion)]
    if ended != 4 - len(left):
        wrong.append(f"logoutAll ended {ended}, and {len(left)} of 4 live")
    if left:
        token = left[0].Token_Sesion
        ended = await nodes.any().end_all(token, token)
        if ended != len(left) or await nodes.exists(*made):
            wrong.append("a session lives outside the index")
    return wrong


async def sessions_expire(nodes: Nodes, user: int) -> list[str]:
    """3. A session's last moments: operations of all sorts across the second of its expiry, then
    while its key is still there and the session is not."""
    seconds, micros = map(int, await nodes.redis.execute("TIME"))
    expiry = seconds + (1 if micros < 300_000 else 2)  # time enough to get there
    mine, dying, third = [await nodes.any().create(user, name) for name in "abc"]
    token = dying.Token_Sesion
    # It has had its longest life, so that no check slides it.
    keys = session_key(token), index_key(user)
    await nodes.redis.execute("EVAL", AGE, 2, *keys, digest(token), expiry, expiry - MAX)

    if user % 2:  # the others' index stays as it is
        await nodes.until(expiry - 0.1 + 0.15 * nodes.random.random())
        made, *_ = await nodes.race(
            nodes.any().create(user, "d"),
            nodes.any().find(token),
            nodes.any().end(mine.Token_Sesion, third.Token_Sesion),
        )
        third = made

    await nodes.until(expiry + 0.1)
    wrong = []
    if await nodes.any().find(token) is not None:
        wrong.append("a check sees a dead session")
    if await nodes.any().update(dying._replace(Fecha_Inicio=expiry - MAX)) is not None:
        wrong.append("a PUT sees a dead session")
    if await nodes.any().end(token, mine.Token_Sesion) is not Refusal.UNAUTHENTICATED:
        wrong.append("a dead session ends another")
    if await nodes.any().end(mine.Token_Sesion, token) != 0:
        wrong.append("a dead session is ended")
    live = [mine, third]
    if user % 4 < 2:
        live += [await nodes.any().create(user, name) for name in "ef"]
        if await nodes.exists(*live) != PER_USER:
            wrong.append("a dead session counted for the limit, and a live one went")
    if (ended := await nodes.any().end_all(mine.Token_Sesion, token)) != len(live):
        wrong.append(f"logoutAll counts dead sessions: {ended} instead of {len(live)}")
    return wrong


async def sessions_without_expiry(nodes: Nodes, user: int) -> list[str]:
    """4. Every operation, some of them cut off in the middle; the observer does the rest."""
    sesion = await nodes.any().create(user, "a")
    token = sesion.Token_Sesion
    cut = asyncio.create_task(nodes.any().create(user, "b"))
    for _ in range(nodes.random.randrange(4)):
        await asyncio.sleep(0)
    cut.cancel()
    await nodes.race(
        nodes.any().create(user, "c"),
        nodes.any().find(token),
        nodes.any().update(sesion._replace(Fecha_Expiracion=sesion.Fecha_Expiracion - 9)),
        nodes.any().update(sesion._replace(Estado_Sesion=0)),
        nodes.any().end(token, token),
    )
    with suppress(asyncio.CancelledError):
        await cut
    return []


async def replies_are_lost(nodes: Nodes, user: int) -> list[str]:
    """5. Connections break after a create and before its reply: it makes one session, or where
    every try failed at most one, that nobody knows of."""
    index = index_key(user)
    try:
        sesion = await nodes.any().create(user, "d")
    except StoreUnavailable:
        left = await nodes.redis.execute("ZCARD", index)
        return [f"a failed create left {left} sessions"] if left > 1 else []
    members = await nodes.redis.execute("ZRANGE", index, 0, -1)
    if members != [digest(sesion.Token_Sesion).encode()]:
        return [f"one create made {len(members)} sessions"]
    return []


async def memory_comes_and_goes(nodes: Nodes, user: int) -> list[str]:
    """6. Redis is full from time to time: checks and logouts do not notice. Creating is refused
    at times, and then nothing is there."""
    made: list[Sesion] = []
    while len(made) < 3:
        await nodes.redis.execute("CONFIG", "SET", "maxmemory", nodes.random.choice((0, 0, 1)))
        with suppress(StoreUnavailable):
            made.append(await nodes.any().create(user, "d"))
    wrong = []
    if await nodes.redis.execute("ZCARD", index_key(user)) != 3:
        wrong.append("a refused create left a session")
    mine = made[0].Token_Sesion
    await nodes.redis.execute("CONFIG", "SET", "maxmemory", 1)
    try:
        found = await nodes.race(*(nodes.any().find(sesion.Token_Sesion) for sesion in made))
        if None in found:
            wrong.append("a check finds no session")
    except StoreUnavailable as error:
        wrong.append(f"a check is refused: {error}")
    try:
        ended = await nodes.any().end(mine, made[1].Token_Sesion)
        all_ended = await nodes.any().end_all(mine, mine)
        if (ended, all_ended) != (1, 2):
            wrong.append(f"logouts ended {ended} and {all_ended}")
    except StoreUnavailable as error:
        wrong.append(f"a logout is refused: {error}")
    return wrong


async def replicas_come_and_go(nodes: Nodes, user: int) -> list[str]:
    """6. Redis refuses writes from time to time: checks answer all the same, and a logout that
    was answered is one."""

    async def toggle() -> None:
        needed = nodes.random.choice((0, 1))
        await nodes.redis.execute("CONFIG", "SET", "min-replicas-to-write", needed)

    sesion = None
    while sesion is None:
        await toggle()
        with suppress(StoreUnavailable):
            sesion = await nodes.any().create(user, "d")
    token, wrong = sesion.Token_Sesion, []
    if await nodes.redis.execute("ZCARD", index_key(user)) != 1:
        wrong.append("a refused create left a session")
    try:
        found = await nodes.race(nodes.any().find(token), toggle(), nodes.any().find(token))
        if None in (found[0], found[2]):
            wrong.append("a check finds no session")
    except StoreUnavailable as error:
        wrong.append(f"a check is refused: {error}")
    ended = None
    while ended is None:
        try:
            ended = await nodes.any().end(token, token)
        except StoreUnavailable:
            if not await nodes.exists(sesion):
                wrong.append("a refused logout happened")
                break
            await toggle()
    if await nodes.exists(sesion):
        wrong.append("a session lives after its logout")
    return wrong


async def records_are_bad(nodes: Nodes, user: int) -> list[str]:
    """7. Checks of good and bad records that go out together: each gets its own answer."""
    made = await asyncio.gather(*(nodes.any().create(user * 8 + i, "d") for i in range(6)))
    bad = {0, nodes.random.randrange(6)}
    for at in bad:
        key = session_key(made[at].Token_Sesion)
        match nodes.random.randrange(4):
            case 0:
                await nodes.redis.execute("SET", key, "x", "EX", 100)
            case 1:
                await nodes.redis.execute("HSET", key, "1", "x")
            case 2:
                await nodes.redis.execute("HSET", key, "1", nodes.random.choice(["", "1 1 1 x"]))
            case 3:
                index = index_key(made[at].ID_Usuario)
                await nodes.redis.execute("SET", index, "x", "EX", 100)
    store = nodes.any()
    order = nodes.random.sample(range(6), 6)
    found = await asyncio.gather(
        *(store.find(made[at].Token_Sesion) for at in order), return_exceptions=True
    )
    wrong = []
    for at, answer in zip(order, found, strict=True):
        if isinstance(answer, BaseException):
            wrong.append(f"a check failed: {answer}")
        elif (answer is None) != (at in bad):
            wrong.append(f"a check of a {'bad' if at in bad else 'good'} record found {answer}")
    return wrong


async def indexes_are_lost(nodes: Nodes, user: int) -> list[str]:
    """2. Redis evicts a user's index, or drops it while its clock is ahead. The sessions that it
    named are used, and all of the user's are ended meanwhile."""
    one, two = [await nodes.any().create(user, name) for name in "ab"]
    caller = (await nodes.any().create(user, "c")).Token_Sesion

    async def lose_and_log_in() -> int | Refusal:
        await nodes.redis.execute("DEL", index_key(user))
        token = (await nodes.any().create(user, "d")).Token_Sesion
        return await nodes.any().end_all(token, token)

    ended, *_ = await nodes.race(
        lose_and_log_in(),
        nodes.any().find(one.Token_Sesion),
        nodes.any().update(two._replace(Fecha_Expiracion=two.Fecha_Expiracion + 9)),
        nodes.any().update(two._replace(Dispositivo="e")),
        nodes.any().end_all(caller, caller) if user % 2 else nodes.any().find(caller),
    )
    wrong = []
    if ended == 0:
        wrong.append("logoutAll ended nothing")
    for token in one.Token_Sesion, two.Token_Sesion, caller:
        if await nodes.any().find(token) is not None:
            wrong.append("a session lives after logoutAll")
    return wrong


# The variants.


class Naive(SessionStore):
    """A store that does something without a script: step by step, from the client."""

    commands: Commands

    async def command(self, *arguments: Argument) -> Any:
        return await self.commands.execute(*arguments)

    async def record(self, token: str) -> list[str] | None:
        """The numbers of a session's record, and its device."""
        text = await self.command("HGET", session_key(token), "1")
        if text is None:
            return None
        numbers, _, device = text.decode().partition(":")
        return [*numbers.split(" "), device]


class SlidesInSteps(Naive):
    """Reads the session, sees that it is there, and writes its new dates."""

    async def find(self, token: str) -> Sesion | None:
        key = session_key(token)
        fields = await self.record(token)
        if fields is None:
            return None
        now = int((await self.command("TIME"))[0])
        await self.command("HSET", key, "1", f"{now} 0 {' '.join(fields[2:6])}:{fields[6]}")
        await self.command("EXPIREAT", key, now + 1800)
        await self.command("ZADD", index_key(int(fields[5])), now + 1800, digest(token))
        Fecha_Inicio, _, _, _, ID_Sesion, ID_Usuario = map(int, fields[:6])
        return Sesion(ID_Sesion, ID_Usuario, token, Fecha_Inicio, now + 1800, 1, now, fields[6])


class PutsInSteps(Naive):
    """Sees that the session is there, and writes its fields."""

    async def update(self, given: Sesion) -> Sesion | Immutable | BadDates | None:
        key = session_key(given.Token_Sesion)
        fields = await self.record(given.Token_Sesion)
        if fields is None:
            return None
        await self.command("HSET", key, "1", f"{' '.join(fields[:6])}:{given.Dispositivo}")
        return given


class EndsAllOfAList(Naive):
    """Reads the index, deletes what was in it, deletes the index."""

    async def end_all(self, caller: str, designated: str) -> int | Refusal:
        fields = await self.record(caller)
        if fields is None:
            return Refusal.UNAUTHENTICATED
        user = int(fields[5])
        ended = 0
        for member in await self.command("ZRANGE", index_key(user), 0, -1):
            ended += await self.command("DEL", f"{base(user)}h:{member.decode()}")
        await self.command("DEL", index_key(user))
        return ended


class CreatesInSteps(Naive):
    """HSET, then EXPIREAT, then the index."""

    async def create(self, ID_Usuario: int, Dispositivo: str) -> Sesion:
        token = tokens.make(ID_Usuario)
        key, index = session_key(token), index_key(ID_Usuario)
        now = int((await self.command("TIME"))[0])
        number = await self.command("INCR", counter_key(ID_Usuario))
        id_ = number * 4096 + tokens.bucket_number(tokens.bucket(token))
        numbers = f"{now} 0 1800 1 {id_} {ID_Usuario}"
        await self.command("HSET", key, "1", f"{numbers}:{Dispositivo}")
        await self.command("EXPIREAT", key, now + 1800)
        await self.command("ZADD", index, now + 1800, digest(token))
        await self.command("EXPIREAT", index, now + 1800)
        return Sesion(id_, ID_Usuario, token, now, now + 1800, 1, now, Dispositivo)


class BelievesTheKey(Naive):
    """A session is live while its key is there."""

    async def find(self, token: str) -> Sesion | None:
        fields = await self.record(token)
        if fields is None:
            return None
        Fecha_Inicio, _, _, _, ID_Sesion, ID_Usuario = map(int, fields[:6])
        return Sesion(ID_Sesion, ID_Usuario, token, Fecha_Inicio, 0, 1, 0, "d")


class BelievesTheIndex(Naive):
    """What the index has is what the user has."""

    async def end_all(self, caller: str, designated: str) -> int | Refusal:
        fields = await self.record(caller)
        if fields is None:
            return Refusal.UNAUTHENTICATED
        user = int(fields[5])
        number: int = await self.command("ZCARD", index_key(user))
        ended = await super().end_all(caller, designated)
        return ended if isinstance(ended, Refusal) else number


class TokenPerTry(Naive):
    """The token is made in the loop that tries again."""

    async def create(self, ID_Usuario: int, Dispositivo: str) -> Sesion:
        while True:
            token = tokens.make(ID_Usuario)
            keys = [session_key(token), index_key(ID_Usuario), counter_key(ID_Usuario)]
            bucket = tokens.bucket_number(tokens.bucket(token))
            with suppress(RedisConnectionError):
                arguments: list[Argument] = [
                    *keys,
                    bucket,
                    ID_Usuario,
                    Dispositivo,
                    1800,
                    MAX,
                    PER_USER,
                ]
                await self.command("EVAL", lua("create"), len(keys), *arguments)
                return Sesion(1, ID_Usuario, token, 0, 0, 1, 0, Dispositivo)


class LosesReplies(WrappedCommands):
    """Every other command is executed, or not even that, and has no reply."""

    async def execute(self, *arguments: Argument, **how: Any) -> Any:
        lost = random.random() < 0.5
        if not lost or random.random() < 0.8:
            reply = await super().execute(*arguments, **how)
        if lost:
            raise RedisConnectionError("the reply was lost")
        return reply


class NoTwin(WrappedCommands):
    """Refused writes look like any other failure, so nothing is tried without them."""

    async def execute(self, *arguments: Argument, **how: Any) -> Any:
        try:
            return await super().execute(*arguments, **how)
        except RedisError as error:
            if str(error).startswith("NOREPLICAS"):
                raise RedisError("refused") from error
            raise


def edited(old: str, new: str) -> Wrap:
    """Scripts in which a text is replaced, wherever it occurs."""

    class Edited(WrappedCommands):
        async def execute(self, *arguments: Argument, **how: Any) -> Any:
            if arguments[0] == "EVALSHA":
                raise NoScriptError  # so that the source comes
            if arguments[0] == "EVAL":
                arguments = ("EVAL", str(arguments[1]).replace(old, new), *arguments[2:])
            return await super().execute(*arguments, **how)

    return Edited


class Proxy:
    """A unix socket in front of Redis's that, when told to, swallows a reply and hangs up."""

    def __init__(self, server: RedisServer) -> None:
        self._redis = server.socket
        self._directory = tempfile.TemporaryDirectory()
        self._path = f"{self._directory.name}/proxy.sock"
        self.url = f"unix://{self._path}"
        self.swallow = False
        self._connections: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_unix_server(self._accept, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._directory.cleanup()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(self._redis)

        async def requests() -> None:
            while data := await reader.read(65536):
                redis_writer.write(data)
            redis_writer.write_eof()

        forward = asyncio.create_task(requests())
        try:
            while reply := await redis_reader.read(65536):
                if self.swallow:
                    self.swallow = False
                    break
                writer.write(reply)
        finally:
            forward.cancel()
            await asyncio.gather(forward, return_exceptions=True)
            writer.close()
            redis_writer.close()


# The tests.


@pytest.fixture(scope="module")
def own_server() -> Iterator[RedisServer]:
    """A server whose memory and replicas come and go."""
    with RedisServer() as server:
        yield server


RACES: list[Scenario] = [
    logout_races_slide_and_put,
    logout_all_races_create_and_slide,
    sessions_without_expiry,
    memory_comes_and_goes,
    replicas_come_and_go,
]


@pytest.mark.parametrize("scenario", RACES, ids=lambda scenario: scenario.__name__)
async def test_races(own_server: RedisServer, scenario: Scenario) -> None:
    assert await run(own_server, scenario) == []


async def test_expiry(own_server: RedisServer) -> None:
    # Each batch lives through the end of a second, so there are few and they are large.
    assert await run(own_server, sessions_expire, at_once=1000) == []


async def test_lost_replies(own_server: RedisServer) -> None:
    assert await run(own_server, replies_are_lost, wrap=LosesReplies) == []


async def test_bad_records(own_server: RedisServer) -> None:
    # Not observed: what is wrong in Redis is the test's own doing.
    assert await run(own_server, records_are_bad, observed=False) == []


async def test_lost_indexes(own_server: RedisServer) -> None:
    # Not observed, for the same reason.
    assert await run(own_server, indexes_are_lost, observed=False) == []


@pytest.mark.parametrize(
    ("scenario", "kind", "wrap", "caught"),
    [
        (logout_races_slide_and_put, SlidesInSteps, None, "is there after its logout"),
        (logout_races_slide_and_put, PutsInSteps, None, "has no expiry"),
        (logout_all_races_create_and_slide, EndsAllOfAList, None, "lives outside the index"),
        (logout_all_races_create_and_slide, SlidesInSteps, None, "lives after logoutAll"),
        (logout_all_races_create_and_slide, CreatesInSteps, None, "the index does not say so"),
        (sessions_expire, BelievesTheKey, None, "a check sees a dead session"),
        (sessions_expire, BelievesTheIndex, None, "logoutAll counts dead sessions"),
        (sessions_without_expiry, CreatesInSteps, None, "has no expiry"),
        (replies_are_lost, TokenPerTry, LosesReplies, "one create made 2 sessions"),
        (
            memory_comes_and_goes,
            SessionStore,
            edited("flags=allow-oom,", "flags="),
            "a check is refused",
        ),
        (memory_comes_and_goes, SessionStore, edited(" flags=allow-oom\n", "\n"), "a logout is"),
        (replicas_come_and_go, SessionStore, NoTwin, "a check is refused"),
        (
            indexes_are_lost,
            SessionStore,
            edited("elseif added == 1 then", "elseif false then"),
            "a session lives after logoutAll",
        ),
        (records_are_bad, SessionStore, edited("redis.pcall", "redis.call"), "a check failed"),
    ],
)
async def test_a_naive_variant_is_caught(
    own_server: RedisServer,
    scenario: Scenario,
    kind: type[SessionStore],
    wrap: Wrap | None,
    caught: str,
) -> None:
    wrong = await run(
        own_server,
        scenario,
        kind=kind,
        wrap=wrap,
        until=caught,
        at_once=1000 if scenario is sessions_expire else AT_ONCE,
        observed=scenario not in (records_are_bad, indexes_are_lost),
    )
    assert any(caught in what for what in wrong), wrong


@pytest.mark.parametrize("operation", ["find", "update", "create"])
async def test_a_second_ends_within_a_script(own_server: RedisServer, operation: str) -> None:
    """4. Redis 7.0 deletes a key at once when its new expiry has passed, by a clock that goes on
    within a script: what the script then writes is a key without an expiry."""
    time_read = "local now = tonumber(redis.call('TIME')[1])"
    slow = edited(time_read, f"{time_read} for _ = 1, 3e7 do end")
    nodes, slow_store = (
        Nodes(own_server, SessionStore, None),
        open_node(slow(connect(own_server.url, 5.0)), SessionStore),
    )
    try:
        await nodes.reset()
        end = int((await nodes.redis.execute("TIME"))[0]) + 2
        sesion = await nodes.any().create(7, "d")
        token = sesion.Token_Sesion
        keys = session_key(token), index_key(7)
        await nodes.redis.execute("EVAL", AGE, 2, *keys, digest(token), end, end - MAX)
        await nodes.until(end - 0.05)
        match operation:
            case "find":
                await slow_store.find(token)
            case "update":
                sooner = sesion._replace(Fecha_Inicio=end - MAX, Ultima_Actividad=end - 2)
                await nodes.redis.execute("EXPIREAT", session_key(token), end + 9)
                await nodes.redis.execute("ZADD", index_key(7), end + 9, digest(token))
                await slow_store.update(sooner._replace(Fecha_Expiracion=end))
            case "create":
                await slow_store.create(7, "e")
        assert int((await nodes.redis.execute("TIME"))[0]) >= end
        assert await nodes.observe() == []
    finally:
        await nodes.aclose()
        await slow_store.aclose()


@pytest.mark.parametrize("kind", [SessionStore, TokenPerTry])
async def test_connections_that_break_before_the_reply(
    redis_server: RedisServer, redis: Redis, kind: type[SessionStore]
) -> None:
    """5. On a real connection: a create makes one session, where a naive one makes two; a PUT
    happens; a check answers; a logout happens and is an error, and asking again says 401."""
    async with Proxy(redis_server) as proxy:
        store = open_node(connect(proxy.url, 5.0), kind)
        try:
            # Then the scripts are known and the connection open: the next reply is the operation's.
            first = await store.create(0, "d")
            await store.update(first)
            await store.end(first.Token_Sesion, first.Token_Sesion)
            doubles = 0
            for user in range(1, DROPS + 1):
                mine = await store.create(user, "a")
                proxy.swallow = True
                sesion = await store.create(user, "b")
                token = sesion.Token_Sesion
                if redis.zcard(index_key(user)) != 2:
                    doubles += 1
                    continue
                assert redis.exists(session_key(mine.Token_Sesion), session_key(token)) == 2
                proxy.swallow = True
                assert await store.update(sesion._replace(Dispositivo="e")) is not None
                proxy.swallow = True
                found = await store.find(token)
                assert found is not None
                assert (found.ID_Sesion, found.Dispositivo) == (sesion.ID_Sesion, "e")
                proxy.swallow = True
                with pytest.raises(StoreUnavailable):
                    await store.end(token, token)
                assert not redis.exists(session_key(token))
                assert await store.end(token, token) is Refusal.UNAUTHENTICATED
            assert doubles == (DROPS if kind is TokenPerTry else 0)
        finally:
            await store.aclose()
