"""Sends mutations to the service and has the oracle judge each answer: in process, through the real
protocol, application and store, or over sockets to the service as a process.

A violation names the seed and the pieces that were sent; the same seed sends the same again.
"""

import asyncio
import functools
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.harness import contract
from tests.harness.in_process import Application, FixedStore, Sessions, Wire, open_application
from tests.harness.mutations import Mutations
from tests.harness.oracle import Oracle, Violation
from tests.harness.service import Service
from tests.harness.stores import KEY, open_store

HANG_SECONDS = 6.0
"""How long an answer is waited for. A client that stalls gets a 408 after 5 s."""
VIOLATIONS_MAX = 10
"""After so many a run ends."""
INPUTS_OF_A_SESSION = 200
"""After so many inputs the sessions are made anew, because requests end them."""

USERS = 7, 7, 8
"""The users of the sessions."""

CONNECTIONS = 64
LOOP_TURNS = 40
"""Turns of the event loop in which a request that came whole is answered."""
SETTLED = 0.3
"""The share of pieces that are sent only when all before them has been answered."""
LOST, HALF_CLOSED = 0.03, 0.03
"""The shares of inputs in process whose client leaves, or shuts its side."""
_FRAMED = re.compile(rb"content-length|transfer-encoding", re.IGNORECASE)

CLIENTS = 32
RESETS, STALLS = 0.05, 0.002
"""The shares of inputs over sockets whose client resets the connection, or waits without shutting
its side."""


@dataclass
class Findings:
    """What came of some inputs."""

    inputs: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    """What the caller counted."""
    slowest: float = 0.0
    """Seconds from the end of an input to its answer, or to the end of the connection."""

    def add(self, other: "Findings") -> None:
        self.inputs += other.inputs
        self.statuses += other.statuses
        self.counted += other.counted
        self.violations += other.violations
        self.slowest = max(self.slowest, other.slowest)


# In process

MakeInputs = Callable[[str, Sequence[bytes], Sequence[Sequence[bytes]], bytes], Mutations]


async def fuzz_in_process(
    seed: str,
    inputs: int,
    *,
    redis_url: str | None = None,
    connect: Callable[[Application], Wire] = Wire,
    make: MakeInputs = Mutations,
    cached: bool = False,
) -> Findings:
    """Without a URL, the Redis is a FixedStore. ``cached``: with a near-cache."""
    fixed = FixedStore()
    sessions = fixed if redis_url is None else Sessions()
    async with open_application(redis_url or fixed, cached=cached) as application:
        fuzz = _InProcess(seed, application, sessions, connect, make)
        store = open_store(redis_url) if redis_url else None
        while fuzz.findings.inputs < inputs and len(fuzz.findings.violations) < VIOLATIONS_MAX:
            if store and fuzz.findings.inputs % INPUTS_OF_A_SESSION < CONNECTIONS:
                sessions.clear()
                for user in USERS:
                    sessions.add((await store.create(user, "d"))._asdict())
            await fuzz.round()
        fuzz.close()
        if store:
            await store.aclose()
    return fuzz.findings


class _InProcess:
    """Connections that are kept from one input to the next, while the service keeps them."""

    def __init__(
        self,
        seed: str,
        application: Application,
        sessions: Sessions,
        connect: Callable[[Application], Wire],
        make: MakeInputs,
    ) -> None:
        self.findings = Findings()
        self._seed = seed
        self._application = application
        self._connect: Callable[[], Wire] = functools.partial(connect, application)
        self._mutations = make(seed, sessions.tokens, sessions.objects, KEY.encode())
        self._oracle = Oracle(sessions.live, KEY.encode())
        self._connections = [self._connect() for _ in range(CONNECTIONS)]

    def close(self) -> None:
        for wire in self._connections:
            wire.lose()

    async def round(self) -> None:
        """Send one input over each connection, piece by piece, and judge the answers."""
        r, wires = self._mutations.random, self._connections
        for wire in wires:
            wire.sent.append(self._mutations.make())
        await self._send()
        begun = time.monotonic()
        lost = [wire for wire in wires if r.random() < LOST]
        for wire in lost:
            self._judge(wire, lost=True)
            wire.lose()
        kept = [wire for wire in wires if wire not in lost]
        for wire in kept:
            # A body that is cut short is a 400, unless its request was answered before that.
            if r.random() < HALF_CLOSED and not _FRAMED.search(b"".join(wire.sent[-1])):
                wire.end()
        await self._settle(kept)
        for wire in kept:
            if wire.within:
                wire.end()
        await self._settle(kept, ended=True)
        self.findings.slowest = max(self.findings.slowest, time.monotonic() - begun)
        for wire in kept:
            self._judge(wire)
            if wire.ended:
                wire.lose()
        self.findings.inputs += len(wires)
        if self._application.errors:
            sent = [wire.sent[-1] for wire in wires]
            self._found(f"{self._application.errors.pop(0)}, after {sent!r}")
        self._connections = [self._connect() if wire.ended else wire for wire in wires]

    async def _send(self) -> None:
        r, wires = self._mutations.random, self._connections
        for at in range(max(len(wire.sent[-1]) for wire in wires)):
            due = [wire for wire in wires if at < len(wire.sent[-1])]
            for wire in due:
                try:
                    wire.send(wire.sent[-1][at])
                except Exception as error:
                    self._found(f"{error!r}, after {[*wire.sent]!r}")
                    wire.transport.close()
            # Where "100 Continue" is due depends on when the body comes.
            expects = any(b"xpect" in piece for wire in due for piece in wire.sent[-1])
            if expects or r.random() < SETTLED:
                await self._settle(wires)
            elif r.random() < 0.5:
                await asyncio.sleep(0)

    @staticmethod
    async def _settle(wires: Sequence[Wire], *, ended: bool = False) -> None:
        """Wait until everything has been answered that can be. ``ended``: no input has more to
        come, so that no answer waits for the rest of a body."""
        begun = time.monotonic()
        while any(wire.owed and (ended or not wire.within) for wire in wires):
            if time.monotonic() - begun > HANG_SECONDS:
                break
            await asyncio.sleep(0)
        for _ in range(LOOP_TURNS):  # a part of a message waits behind whole ones
            await asyncio.sleep(0)

    def _judge(self, wire: Wire, *, lost: bool = False) -> None:
        """``lost``: the client leaves while answers may be due."""
        received = b""
        try:
            received = wire.take(whole=not lost)
            if lost:
                return
            if wire.owed:
                raise Violation("no answer")
            if wire.within and not wire.ended:
                raise Violation("the end of the input was not seen")
            data = b"".join(wire.sent[-1])
            self.findings.statuses.update(self._oracle.check(data, received, closed=wire.ended))
        except Violation as violation:
            self._found(f"{violation}, after {[*wire.sent]!r}: {received!r}")
            wire.transport.close()

    def _found(self, violation: str) -> None:
        self.findings.violations.append(f"seed {self._seed}: {violation}")


# Over sockets


def fuzz_over_sockets(service: Service, seed: str, inputs: int) -> Findings:
    """Clients of one service, each with one input after the other, on a connection each."""
    fuzz = _Sockets(service, inputs)
    logged = len(service.log)
    fuzz.renew()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(fuzz.client, [f"{seed}:{number}" for number in range(CLIENTS)]))
    fuzz.renew()  # the service goes on
    errors = re.findall(r"^.* ERROR .*$|^Traceback.*$", service.log[logged:], re.MULTILINE)
    fuzz.findings.violations += [f"seed {seed}: {error}" for error in errors]
    return fuzz.findings


class _Sockets:
    def __init__(self, service: Service, inputs: int) -> None:
        self.findings = Findings()
        self._service, self._inputs = service, inputs
        self._sessions = Sessions()
        self._oracle = Oracle(self._sessions.live, KEY.encode())
        self._lock = threading.Lock()
        """Of the findings, the sessions and the oracle."""

    def renew(self) -> None:
        """Make sessions that are live, in the place of those that a request has ended."""
        self._sessions.clear()
        for user in USERS:
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": contract.JSON}
            body = b'{"ID_Usuario": %d, "Dispositivo": "d"}' % user
            self._sessions.add(self._service.request("POST", "/sesiones", headers, body).json())

    def client(self, seed: str) -> None:
        sessions, found = self._sessions, self.findings
        mutations = Mutations(seed, sessions.tokens, sessions.objects, KEY.encode())
        while True:
            with self._lock:
                if found.inputs >= self._inputs or len(found.violations) >= VIOLATIONS_MAX:
                    return
                found.inputs += 1
                if found.inputs % INPUTS_OF_A_SESSION == 0:
                    self.renew()
                pieces = mutations.make()
            try:
                received = self._exchange(pieces, mutations.random)
                with self._lock:
                    if received is not None:
                        data = b"".join(pieces)
                        found.statuses.update(self._oracle.check(data, received, closed=True))
            except Violation as violation:
                found.violations.append(f"seed {seed}: {violation}, after {pieces!r}")

    def _exchange(self, pieces: Sequence[bytes], r: random.Random) -> bytes | None:
        """Everything that comes back, or None where nothing can be said of it."""
        resets, stalls = r.random() < RESETS, r.random() < STALLS
        # A client that has sent nothing yet is idle, not slow.
        stalls = stalls and b"".join(pieces).strip(b"\r\n") != b""
        received = bytearray()
        with self._service.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(HANG_SECONDS)
            try:
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(r.choice((0, 0, 0.002)))
                if resets:
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    return None
                if not stalls:
                    connection.shutdown(socket.SHUT_WR)
                begun = time.monotonic()
                while chunk := connection.recv(65536):
                    received += chunk
            except TimeoutError:
                if not stalls or not received:
                    raise Violation(f"hangs, after {bytes(received)!r}") from None
            except OSError:
                return None  # what comes behind a request that closes may meet a closed connection
        if stalls:
            return bytes(received).partition(b"HTTP/1.1 408 ")[0]
        self.findings.slowest = max(self.findings.slowest, time.monotonic() - begun)
        return bytes(received)
