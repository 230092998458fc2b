"""Users of the service at a rate, and a ledger of what the service acknowledged to them.

The ledger judges every answer when it comes; verify() asks about every session once more at the
end.
"""

import asyncio
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sesiones import tokens
from tests.harness.arrivals import Arrivals
from tests.harness.client import NOT_SENT, Client
from tests.harness.ledger import Ledger, Sent, numbers
from tests.harness.service import Reply

LOST = "401 for a live session"
BACK = "200 after an acknowledged logout"
OVERWRITTEN = "an acknowledged PUT was lost"

REPLICATED_LATE = {"Ultima_Actividad ran backwards", "Fecha_Expiracion ran backwards"}
"""No error of the service when a master was lost: a slide is not confirmed by replicas."""

MIX = {"check": 50, "check ended": 15, "create": 20, "update": 5, "logout": 8, "logoutAll": 2}
WRITES = "create", "update", "logout", "logoutAll"
CHECKS = "/sesiones/self", "/sesiones/verificar"


class Event(NamedTuple):
    """What came of a request. Times are in seconds, ``at`` on the monotonic clock."""

    at: float
    operation: str
    status: int
    seconds: float
    port: int
    bucket: str
    """The user's: it tells on which shard of a Cluster the session was."""


def counted(events: Iterable[Event]) -> str:
    """How many answers of each status."""
    counts = Counter(event.status for event in events)
    return ", ".join(f"{count:,} x {status}" for status, count in sorted(counts.items()))


def slowest(events: Iterable[Event]) -> float:
    return max(event.seconds for event in events)


def words(wrong: Mapping[str, Collection[str]]) -> str:
    """What is wrong, and of how many sessions."""
    return ", ".join(f"{what}: {len(found)}" for what, found in wrong.items()) or "nothing wrong"


@dataclass
class _User:
    """``live``: the tokens that are used. ``ending``: those whose logout was not acknowledged yet.
    ``busy``: a create or a logoutAll is in flight. Only one of them is sent at a time, because it
    could not be told which of the two came first."""

    number: int
    live: list[str] = field(default_factory=list)
    ending: set[str] = field(default_factory=set)
    busy: bool = False


class Traffic:
    """Users of the nodes at the ports: they log in, use their sessions, rename their devices, log
    out and try what has ended."""

    def __init__(
        self, ports: Sequence[int], users: int = 200, seed: int = 7, spare: int = 0
    ) -> None:
        self.events: list[Event] = []
        self.late = 0.0
        """By how many seconds the last run() itself was late at the most."""
        self.wrong: dict[str, set[str]] = defaultdict(set)
        """The tokens of the sessions that the service was wrong about, by the ledger's words."""
        self.clients = [Client(port, spare) for port in ports]
        self.created_at: dict[str, float] = {}
        """When each session was acknowledged, on the monotonic clock."""
        self.unconfirmed: list[str] = []
        """The sessions that logouts were to end whose outcome is unknown."""
        self._ledger = Ledger()
        self._users = [_User(number) for number in range(1, users + 1)]
        self._ended: list[str] = []
        self._objects: dict[str, dict[str, object]] = {}
        """Of sessions of which no PUT was sent yet."""
        self._devices: dict[str, set[str]] = {}
        """What a session's device may be."""
        self._random = random.Random(seed)

    async def run(self, rate: float, seconds: float, label: str) -> list[Event]:
        """Requests arrive for that long, spread over the nodes; waits for all their answers."""
        first = len(self.events)
        operations, weights = list(MIX), list(MIX.values())
        arrivals = Arrivals(rate, seconds, label, self._random)
        async with asyncio.TaskGroup() as tasks:
            async for _ in arrivals:
                (operation,) = self._random.choices(operations, weights)
                tasks.create_task(self.one(operation))
        self.late = arrivals.late
        return self.events[first:]

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

    async def verify(self, client: Client | None = None) -> None:
        """Ask about every session that there ever was, until it is answered."""
        client = client or self.clients[0]

        async def look(token: str) -> None:
            while True:
                sent = self._ledger.sent(token)
                reply = await client.ask("GET", "/sesiones/self", token)
                if reply.status in (200, 401):
                    break
                await asyncio.sleep(0.1)
            self._judge(sent, reply)
            if reply.status == 200 and reply.json()["Dispositivo"] not in self._devices[token]:
                self.wrong[OVERWRITTEN].add(token)

        made = list(self.created_at)
        for first in range(0, len(made), 64):
            await asyncio.gather(*(look(token) for token in made[first : first + 64]))

    def take_wrong(self) -> dict[str, set[str]]:
        """What was wrong so far; what is found from now on is counted anew."""
        wrong, self.wrong = self.wrong, defaultdict(set)
        return wrong

    def close(self) -> None:
        for client in self.clients:
            client.close()

    def known(self) -> Counter[str]:
        """How many sessions were acknowledged, and how many of those ended so."""
        return Counter(created=len(self.created_at), ended=len(self._ended))

    def longest_gap(
        self, since: float, until: float, buckets: Container[str] | None = None
    ) -> float:
        """For how many seconds no write was acknowledged, at the longest; of the users of the
        buckets or of all."""
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
            if reply is not NOT_SENT:  # else the next node is tried, as a gateway does
                break
        seconds = time.monotonic() - begun
        self.events.append(Event(begun, operation, reply.status, seconds, client.port, bucket))
        return reply

    async def _create(self, user: _User) -> None:
        user.busy = True
        ID_Usuario, device = user.number, f"laptop of {user.number}"
        body = {"ID_Usuario": ID_Usuario, "Dispositivo": device}
        bucket = tokens.user_bucket(ID_Usuario)
        reply = await self._ask("create", bucket, "POST", "/sesiones", body=body)
        user.busy = False
        if reply.status == 201:
            session = reply.json()
            token = session["Token_Sesion"]
            self._ledger.add(token, {"ID_Usuario": ID_Usuario})
            self._devices[token] = {device}
            self._judge(self._ledger.sent(token), Reply(200, {}, reply.body))
            self._objects[token] = session
            self.created_at[token] = time.monotonic()
            user.live.append(token)

    async def _check(self, operation: str, token: str) -> None:
        sent, bucket = self._ledger.sent(token), tokens.bucket(token)
        path = self._random.choice(CHECKS)
        self._judge(sent, await self._ask(operation, bucket, "GET", path, token))

    async def _update(self, token: str) -> None:
        session = self._objects.pop(token)
        laptop, tablet = str(session["Dispositivo"]), f"tablet of {session['ID_Usuario']}"
        self._devices[token].add(tablet)
        sent = self._ledger.sent(token)
        body = session | {"Dispositivo": tablet}
        reply = await self._ask("update", tokens.bucket(token), "PUT", "/sesiones", body=body)
        if reply.status == 200:
            self._judge(sent, reply)
            self._devices[token].discard(laptop)

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
        checks = reply.status == 200 and not sent.ends
        answer = numbers(reply.headers, reply.body) if checks else {}
        wrong = self._ledger.judge(sent, reply.status, answer)
        if checks and reply.body and not wrong:
            session = reply.json()
            if session["Token_Sesion"] != sent.token:
                wrong = "another session's Token_Sesion"
            elif session["Dispositivo"].partition(" of ")[2] != str(session["ID_Usuario"]):
                wrong = "another session's Dispositivo"
        if wrong and wrong not in REPLICATED_LATE:
            self.wrong[wrong].add(sent.token)
