"""Requests at a rate on the nodes of the service, and a ledger of what they acknowledged.

An open loop: requests arrive whether or not earlier ones were answered. Every answer is judged by
the ledger when it comes, and verify() asks about every session once more in the end.
"""

import asyncio
import itertools
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import httptools
import orjson

from sesiones import tokens
from tests.harness.ledger import Ledger, Sent, numbers
from tests.harness.progress import Progress

REPLY_SECONDS = 5.0
"""What is answered later, or never, is a hang."""
TICK_SECONDS = 0.002

LOST = "401 for a live session"
BACK = "200 after an acknowledged logout"
OVERWRITTEN = "an acknowledged PUT was lost"

REPLICATED_LATE = {"Ultima_Actividad ran backwards", "Fecha_Expiracion ran backwards"}
"""No error of the service's when a master was lost: nobody waits for a slide to be replicated."""


def words(wrong: Mapping[str, Collection[str]]) -> str:
    """What is wrong, and of how many sessions."""
    return ", ".join(f"{what}: {len(found)}" for what, found in wrong.items()) or "nothing wrong"


class Reply(NamedTuple):
    """``status`` 0: the connection failed, or could not be opened (REFUSED)."""

    status: int
    headers: dict[str, str]
    body: bytes
    closes: bool


class Event(NamedTuple):
    """What came of a request. Times are in seconds, ``at`` on the monotonic clock."""

    at: float
    operation: str
    status: int
    seconds: float
    port: int
    bucket: str
    """The user's: it says on which shard of a Cluster it was."""


NOTHING = Reply(0, {}, b"", True)
REFUSED = Reply(0, {}, b"", True)


class _Connection(asyncio.Protocol):
    """One request at a time, over a connection that is kept alive."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._reply: asyncio.Future[Reply] | None = None

    async def ask(self, request: bytes) -> Reply:
        if self.transport.is_closing():
            return NOTHING
        self._reply = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body = b""
        self.transport.write(request)
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                return await self._reply
        except TimeoutError:
            self.transport.abort()
            return NOTHING

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._answer(NOTHING)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().title()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        closes = not self._parser.should_keep_alive()
        self._answer(Reply(self._parser.get_status_code(), self._headers, self._body, closes))

    def _answer(self, reply: Reply) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(reply)


class Client:
    """Any number of requests at once to the service at a port of loopback, over connections that
    are used in turn. ``spare``: how many of them are kept idle, as gateways do; 0: as many as come
    about."""

    def __init__(self, port: int, spare: int = 0) -> None:
        self.port = port
        self._spare = spare
        self._idle: deque[_Connection] = deque()

    async def ask(self, method: str, path: str, token: str = "", body: object = None) -> Reply:
        """``body`` is sent as JSON."""
        content = b"" if body is None else orjson.dumps(body)
        head = f"{method} {path} HTTP/1.1\r\nHost: sesiones\r\nContent-Length: {len(content)}\r\n"
        head += f"X-Auth-Token: {token}\r\n" if token else ""
        head += "Content-Type: application/json\r\n" if content else ""
        while self._idle and self._idle[0].transport.is_closing():
            self._idle.popleft()
        try:
            connection = (
                self._idle.popleft() if len(self._idle) > self._spare else await self._open()
            )
        except OSError:
            return REFUSED
        reply = await connection.ask(f"{head}\r\n".encode() + content)
        if reply.closes or 0 < self._spare < len(self._idle):
            connection.transport.close()
        else:
            self._idle.append(connection)
        return reply

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(_Connection, "127.0.0.1", self.port))[1]

    def close(self) -> None:
        for connection in self._idle:
            connection.transport.abort()
        self._idle.clear()


@dataclass
class _User:
    """``live``: the tokens that are used. ``ending``: those whose logout was not acknowledged yet.
    ``busy``: a create or a logoutAll is out, and only one of them at a time: which of the two came
    first nobody could tell."""

    number: int
    live: list[str] = field(default_factory=list)
    ending: set[str] = field(default_factory=set)
    busy: bool = False


MIX = {"check": 50, "check ended": 15, "create": 20, "update": 5, "logout": 8, "logoutAll": 2}
WRITES = "create", "update", "logout", "logoutAll"


class Traffic:
    """Users of the nodes at the ports: they log in, use their sessions, rename their devices, log
    out and try what has ended."""

    def __init__(
        self, ports: Sequence[int], users: int = 200, seed: int = 7, spare: int = 0
    ) -> None:
        self.events: list[Event] = []
        self.late = 0.0
        """Seconds by which the last run() itself was late at the most, on a busy machine: so are
        the times of its events then."""
        self.wrong: dict[str, set[str]] = defaultdict(set)
        """The tokens of the sessions that the service was wrong about, by the ledger's words."""
        self.clients = [Client(port, spare) for port in ports]
        self._ledger = Ledger()
        self._users = [_User(number) for number in range(1, users + 1)]
        self.created_at: dict[str, float] = {}
        """When each session was acknowledged, on the monotonic clock."""
        self._ended: list[str] = []
        self.unconfirmed: list[str] = []
        """The sessions that logouts were to end of which nobody knows what came."""
        self._objects: dict[str, dict[str, object]] = {}
        """Of sessions of which no PUT was sent yet."""
        self._devices: dict[str, set[str]] = {}
        """What a session's device may be."""
        self._random = random.Random(seed)

    async def run(self, rate: float, seconds: float, label: str) -> None:
        """Requests arrive for that long, spread over the nodes; waits for all their answers."""
        progress = Progress(label, int(rate * seconds))
        operations, weights = list(MIX), list(MIX.values())
        begun = time.monotonic()
        passed = self.late = 0.0
        async with asyncio.TaskGroup() as tasks:
            while passed < seconds:
                for _ in range(int(rate * passed) - progress.done):
                    (operation,) = self._random.choices(operations, weights)
                    tasks.create_task(self.one(operation))
                    progress.step()
                await asyncio.sleep(TICK_SECONDS)
                last, passed = passed, time.monotonic() - begun
                self.late = max(self.late, passed - last - TICK_SECONDS)
        progress.end()

    async def one(self, operation: str) -> None:
        """One request of the kind; another kind where the user at hand has nothing to do it on."""
        user = self._random.choice(self._users)
        if not user.live or (operation == "create" and not user.busy):
            if not user.busy:
                await self._create(user)
        elif operation == "check":
            await self._check(operation, self._random.choice(user.live))
        elif operation == "check ended" and self._ended:
            await self._check(operation, self._random.choice(self._ended))
        elif operation == "update" and user.live[-1] in self._objects:
            await self._update(user.live[-1])
        elif operation == "logout":
            await self._log_out(user, operation, self._random.choice(user.live))
        elif operation == "logoutAll" and not user.busy:
            await self._log_out(user, operation, user.live[-1])

    async def verify(self, client: Client) -> None:
        """Ask about every session that there ever was, until it is answered."""

        async def look(token: str) -> None:
            while True:
                sent = self._ledger.sent(token)
                reply = await client.ask("GET", "/sesiones/self", token)
                if reply.status in (200, 401):
                    break
                await asyncio.sleep(0.1)
            self._judge(sent, reply)
            if (
                reply.status == 200
                and orjson.loads(reply.body)["Dispositivo"] not in self._devices[token]
            ):
                self.wrong[OVERWRITTEN].add(token)

        made = list(self.created_at)
        for first in range(0, len(made), 64):
            await asyncio.gather(*(look(token) for token in made[first : first + 64]))

    def close(self) -> None:
        for client in self.clients:
            client.close()

    def known(self) -> Counter[str]:
        """How many sessions were acknowledged, and how many of those ended so."""
        return Counter(created=len(self.created_at), ended=len(self._ended))

    def longest_gap(
        self, since: float, until: float, buckets: Container[str] | None = None
    ) -> float:
        """Seconds in which no write was acknowledged, at the longest; of the users of the buckets
        or of all."""
        moments = [
            event.at + event.seconds
            for event in self.events
            if event.operation in WRITES
            and event.status in (200, 201)
            and (buckets is None or event.bucket in buckets)
        ]
        within = sorted(moment for moment in moments if since < moment < until)
        bounds = [since, *within, until]
        return max(after - before for before, after in itertools.pairwise(bounds))

    async def _ask(
        self,
        operation: str,
        bucket: str,
        method: str,
        path: str,
        token: str = "",
        body: object = None,
    ) -> Reply:
        begun = time.monotonic()
        for client in self._random.sample(self.clients, len(self.clients)):
            reply = await client.ask(method, path, token, body)
            if reply is not REFUSED:  # else nothing was sent: the next node, as a gateway does
                break
        seconds = time.monotonic() - begun
        self.events.append(Event(begun, operation, reply.status, seconds, client.port, bucket))
        return reply

    async def _create(self, user: _User) -> None:
        user.busy = True
        body = {"ID_Usuario": user.number, "Dispositivo": "laptop"}
        bucket = tokens.user_bucket(user.number)
        reply = await self._ask("create", bucket, "POST", "/sesiones", body=body)
        user.busy = False
        if reply.status == 201:
            session = orjson.loads(reply.body)
            token = session["Token_Sesion"]
            self._ledger.add(token, numbers({}, reply.body))
            self._objects[token], self._devices[token] = session, {"laptop"}
            self.created_at[token] = time.monotonic()
            user.live.append(token)

    async def _check(self, operation: str, token: str) -> None:
        sent, bucket = self._ledger.sent(token), tokens.bucket(token)
        self._judge(sent, await self._ask(operation, bucket, "GET", "/sesiones/self", token))

    async def _update(self, token: str) -> None:
        session = self._objects.pop(token) | {"Dispositivo": "tablet"}
        self._devices[token].add("tablet")
        bucket = tokens.bucket(token)
        reply = await self._ask("update", bucket, "PUT", "/sesiones", body=session)
        if reply.status == 200:
            self._devices[token].remove("laptop")

    async def _log_out(self, user: _User, operation: str, token: str) -> None:
        ends = [token]
        if operation == "logoutAll":
            user.busy = True
            ends += {*user.live, *user.ending} - {token}
        user.live = [token for token in user.live if token not in ends]
        user.ending.update(ends)
        sent = self._ledger.sent(token, ends)
        path = f"/sesiones/{operation}?Token_Sesion={token}"
        reply = await self._ask(operation, tokens.bucket(token), "DELETE", path, token)
        if operation == "logoutAll":
            user.busy = False
        self._judge(sent, reply)
        if reply.status == 200:
            self._ended.extend(user.ending.intersection(ends))  # each once
            user.ending.difference_update(ends)
        elif reply.status != 401:
            self.unconfirmed.extend(ends)
            if operation == "logoutAll":
                # It may still come to Redis, and end what is created by then: another user.
                user.number += len(self._users)
                user.ending.clear()

    def _judge(self, sent: Sent, reply: Reply) -> None:
        answer = numbers({}, reply.body) if reply.status == 200 and not sent.ends else {}
        wrong = self._ledger.judge(sent, reply.status, answer)
        if wrong and wrong not in REPLICATED_LATE:
            self.wrong[wrong].add(sent.token)
