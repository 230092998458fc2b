"""Checks of a few sessions at every node, many a second, while the sessions change and end: how
late does a node still answer what was true before?

Every change of a session has a version, which its device's name shows; an end is the last one. A
check is *stale* when its answer is of an earlier version than one that had been acknowledged before
the check was sent, and it is late by the time between the two. Both moments are the caller's: the
acknowledgement when it was read, the check before it was written. So a busy machine can make a
stale answer look less late than it is, and never more.
"""

import asyncio
import math
import random
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.harness.arrivals import Arrivals
from tests.harness.client import Client

SESSIONS_MAX = 3
"""Of a user, until an ending is due."""
INACTIVE_EVERY = 3
"""Every third change of a session makes it inactive, and the next one active again."""
ENDED_SHARE = 0.3
"""The share of the checks that ask about a session that has ended."""
ENDED_SECONDS = 3.0
"""For how long they ask about it."""
PROBE_SECONDS = 2.0
"""A node that still accepts a session for so long after its end is not asked any more."""
LIFE_SECONDS = 2, 5
"""Of the sessions that are left to expire."""
EXPIRING_SHARE = 0.2

ENDED = math.inf
"""The version of a session that has ended."""

WRONG_401 = "401 for a live session"
WRONG_SESSION = "another session's answer"


class Change(NamedTuple):
    """``at``: when it was acknowledged, on the monotonic clock; ``port``: of the node that did it,
    or None where every node has to know by itself, because the session expired."""

    at: float
    port: int | None
    version: float


@dataclass
class HotSession:
    """``version``: of the last change that was sent; ``may_end``: whether an ending was."""

    token: str
    number: int
    user: "HotUser"
    object: dict[str, object]
    expires: float = math.inf
    """On the clock of the machine, which is Redis's too."""
    version: int = 0
    may_end: bool = False
    changes: list[Change] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        """The version of the last change that was acknowledged."""
        return max((int(each.version) for each in self.changes if each.version < ENDED), default=0)

    @property
    def ended(self) -> bool:
        return self.may_end or time.time() >= self.expires


@dataclass
class HotUser:
    """``busy``: a write is in flight, so that it is known in which order writes came."""

    number: int
    sessions: list[HotSession] = field(default_factory=list)
    busy: bool = False


@dataclass
class Staleness:
    """What was seen. Seconds count from the acknowledgement until the stale check was sent."""

    checks: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    """How many requests of each kind had which status."""
    stale: int = 0
    latest_seconds: float = 0.0
    own_stale: int = 0
    """At the node that made the change, or after a session's own expiry."""
    wrong: Counter[str] = field(default_factory=Counter)
    lags: list[float] = field(default_factory=list)
    """Of each ending at each other node, while run() probes: until the first check was sent that
    the node refused."""


class HotTraffic:
    """Users of the nodes at the ports. ``spare``: connections to each node, in use in turn, so that
    every worker is asked."""

    def __init__(self, ports: Sequence[int], users: int, *, spare: int = 16, seed: int = 7) -> None:
        self.seen = Staleness()
        self._clients = [Client(port, spare) for port in ports]
        self._random = random.Random(seed)
        self._users = [HotUser(number) for number in range(1, users + 1)]
        self._ended: deque[tuple[float, HotSession]] = deque()
        self._probing = False

    @property
    def users(self) -> list[int]:
        """The numbers of those that have sessions now."""
        return [user.number for user in self._users if user.sessions]

    async def run(self, rate: float, writes: float, seconds: float, *, probe: bool = False) -> None:
        """Checks arrive for that long, and writes beside them; waits for the answers to all.
        ``probe``: after each ending, ask each node until it refuses the session."""
        self._probing = probe
        async with asyncio.TaskGroup() as tasks:
            async for _ in Arrivals(rate + writes, seconds, choose=self._random):
                is_write = self._random.random() < writes / (rate + writes)
                tasks.create_task(self._write() if is_write else self._check_one())

    def close(self) -> None:
        for client in self._clients:
            client.close()

    async def _check_one(self) -> None:
        client = self._random.choice(self._clients)
        now = time.monotonic()
        while self._ended and self._ended[0][0] < now - ENDED_SECONDS:
            self._ended.popleft()
        if self._ended and self._random.random() < ENDED_SHARE:
            await self._check(client, self._random.choice(self._ended)[1])
            return
        user = self._random.choice(self._users)
        if user.sessions:
            await self._check(client, self._random.choice(user.sessions))

    async def _check(self, client: Client, session: HotSession) -> tuple[int, float]:
        """The status, and when it was asked for."""
        sent_at, sent_time = time.monotonic(), time.time()
        first = session.acknowledged
        reply = await client.ask("GET", "/sesiones/self", session.token)
        self.seen.checks += 1
        self.seen.statuses[f"check {reply.status}"] += 1
        if reply.status == 200:
            answer = reply.json()
            if answer["Token_Sesion"] != session.token:
                self.seen.wrong[WRONG_SESSION] += 1
            version = int(answer["Dispositivo"].removeprefix("v"))
            self._judge(client.port, session, version, sent_at, sent_time)
        elif reply.status == 401:
            versions = range(first, session.version + 1)
            inactive = any(_is_inactive(version) for version in versions)
            self.seen.wrong[WRONG_401] += not (session.ended or inactive)
        return reply.status, sent_at

    def _judge(
        self, port: int, session: HotSession, version: int, sent_at: float, sent_time: float
    ) -> None:
        """A check was answered with this version of the session."""
        late = [
            change
            for change in session.changes
            if change.version > version and change.at <= sent_at
        ]
        own = any(change.port == port for change in late) or sent_time >= session.expires
        if late or own:
            self.seen.stale += 1
            self.seen.own_stale += own
            at = min((change.at for change in late), default=sent_at)
            self.seen.latest_seconds = max(self.seen.latest_seconds, sent_at - at)

    async def _write(self) -> None:
        user = self._random.choice(self._users)
        if user.busy:
            return
        user.busy = True
        for session in [each for each in user.sessions if each.ended]:
            self._leave(session)
        client = self._random.choice(self._clients)
        lasting = [each for each in user.sessions if each.expires == math.inf]
        if not lasting or len(user.sessions) < self._random.randint(1, SESSIONS_MAX):
            known = await self._create(client, user)
        elif self._random.random() < 0.4:
            known = await self._update(client, self._random.choice(lasting))
        else:
            known = await self._end(client, user, self._random.choice(lasting))
        if not known:
            # What was sent may still come to Redis, and end what is created by then.
            for session in user.sessions:
                session.may_end = True
            user.sessions = []
            user.number += len(self._users)
        user.busy = False

    async def _create(self, client: Client, user: HotUser, **more: object) -> bool:
        expires = not more and self._random.random() < EXPIRING_SHARE
        if expires:
            seconds = self._random.randint(*LIFE_SECONDS)
            more = {"Ventana": seconds, "Vida_Maxima": seconds}
        body = {"ID_Usuario": user.number, "Dispositivo": "v0"} | more
        reply = await client.ask("POST", "/sesiones", body=body)
        self.seen.statuses[f"create {reply.status}"] += 1
        if reply.status != 201:
            return False
        made = reply.json()
        session = HotSession(made["Token_Sesion"], made["ID_Sesion"], user, made)
        if expires:
            session.expires = made["Fecha_Expiracion"]
        user.sessions.append(session)
        return True

    async def _update(self, client: Client, session: HotSession) -> bool:
        session.version += 1
        version = session.version
        changed = {"Dispositivo": f"v{version}", "Estado_Sesion": int(not _is_inactive(version))}
        reply = await client.ask("PUT", "/sesiones", body=session.object | changed)
        self.seen.statuses[f"update {reply.status}"] += 1
        if reply.status != 200:
            return False
        session.changes.append(Change(time.monotonic(), client.port, version))
        session.object = reply.json()
        return True

    async def _end(self, client: Client, user: HotUser, session: HotSession) -> bool:
        """End sessions of the user in one of the ways that there are."""
        others = [each for each in user.sessions if each is not session]
        everyone = [session, *others]
        token, number = session.token, user.number
        owner = f"?Token_Sesion={token}"
        if _is_inactive(session.version):  # it can end nothing itself
            ways = ["operator", "limit", "close others"]
        else:
            ways = ["logout", "logoutAll", "logoutOthers", "ID", "operator", "limit"]
        way = self._random.choice(ways)
        ends = {"logout": [session], "ID": [session], "logoutOthers": others}.get(way, everyone)
        for each in ends:
            each.may_end = True
        if way in ("limit", "close others"):
            more = {"Max_Sesiones": 1} if way == "limit" else {"Cerrar_Otras": 1}
            known = await self._create(client, user, **more)
        else:
            path = {
                "logout": f"logout{owner}",
                "logoutAll": f"logoutAll{owner}",
                "logoutOthers": "logoutOthers",
                "ID": f"{session.number}",
                "operator": f"usuarios/{number}",
            }[way]
            caller = "" if way == "operator" else token
            reply = await client.ask("DELETE", f"/sesiones/{path}", caller)
            self.seen.statuses[f"{way} {reply.status}"] += 1
            known = reply.status == 200
        if known:
            await self._ended_by(client, ends)
        return known

    async def _ended_by(self, client: Client, ends: Iterable[HotSession]) -> None:
        at = time.monotonic()
        for session in ends:
            session.changes.append(Change(at, client.port, ENDED))
            self._leave(session)
        if self._probing:
            pairs = [(other, session) for other in self._clients for session in ends]
            await asyncio.gather(
                *(self._probe(*pair, at) for pair in pairs if pair[0] is not client)
            )

    async def _probe(self, client: Client, session: HotSession, ended_at: float) -> None:
        status, sent_at = 200, ended_at
        while status == 200 and sent_at < ended_at + PROBE_SECONDS:
            status, sent_at = await self._check(client, session)
        if status in (200, 401):
            self.seen.lags.append(sent_at - ended_at)

    def _leave(self, session: HotSession) -> None:
        """The session has ended or expired: it is asked about for a while."""
        session.user.sessions.remove(session)
        self._ended.append((time.monotonic(), session))


def _is_inactive(version: int) -> bool:
    return version % INACTIVE_EVERY == INACTIVE_EVERY - 1
