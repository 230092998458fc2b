"""Millions of bad requests (mutations.py), and whether each answer is one of the contract's
(oracle.py): in process, through the real protocol, application and store, on a transport and a
Redis that are none; and over sockets, on a service and a Redis that are.

A failure names the seed and the pieces that were sent; the same seed sends the same again.
"""

import asyncio
import itertools
import logging
import multiprocessing
import os
import random
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any
from unittest.mock import patch

import uvicorn
import uvloop
from uvicorn.server import ServerState

from scripts.chaos import Bar, resident
from scripts.chaos.mutations import Mutations
from scripts.chaos.oracle import Oracle, Violation
from sesiones import tokens
from sesiones.http.app import create_app
from sesiones.http.fast_check import FastLane
from sesiones.http.protocol import HttpProtocol
from sesiones.redis_client import OnReply
from sesiones.settings import Settings
from sesiones.store.scripts import CREATE, END, END_ALL, UPDATE
from tests.harness.progress import Progress
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service

IN_PROCESS, SHORT_IN_PROCESS = 10_000_000, 4_000
OVER_SOCKETS, SHORT_OVER_SOCKETS = 100_000, 250
KEY = "k" * 32
SETTINGS = {"SESIONES_SERVICE_KEY": KEY, "SESIONES_REDIS_TIMEOUT": "5"}
"""With patience: a 503 that a busy machine makes is not what is looked for."""
HANG_SECONDS = 1.0
LATE_SECONDS = 6.0
"""For what the service itself waits for: a request that does not end (408 after 5 s)."""
GROWTH = 1.05
WARM = 0.1
"""The share of inputs after which the memory is looked at first."""
NOW = 1_800_000_000


@dataclass
class Soak:
    """What came of some inputs."""

    inputs: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    slowest: float = 0.0
    """From the last piece of an input to its answer, or from its end to the connection's."""
    growth: float = 1.0
    """Of the resident memory."""

    def add(self, other: "Soak") -> None:
        self.inputs += other.inputs
        self.statuses += other.statuses
        self.violations += other.violations
        self.slowest = max(self.slowest, other.slowest)
        self.growth = max(self.growth, other.growth)


def play(short: bool) -> Iterator[Bar]:
    seed = "short" if short else os.environ.get("SESIONES_CHAOS_SEED", str(time.time_ns()))
    if short:
        yield from _bars("in process", uvloop.run(in_process(seed, SHORT_IN_PROCESS)), short)
        yield from _bars("over sockets", over_sockets(seed, SHORT_OVER_SOCKETS), short)
        return
    yield from _bars("in process", in_processes(seed, IN_PROCESS), short)
    yield from _bars("over sockets", over_sockets(seed, OVER_SOCKETS), short)


def _bars(where: str, soak: Soak, short: bool) -> Iterator[Bar]:
    statuses = ", ".join(f"{count:,} {status}" for status, count in sorted(soak.statuses.items()))
    yield Bar(
        f"no answer to {soak.inputs:,} bad inputs {where} is outside the contract, none is a 5xx",
        soak.violations[0] if soak.violations else statuses,
        not soak.violations,
    )
    if not short:
        yield Bar(
            f"{where}, none is waited for longer than {HANG_SECONDS:.0f} s",
            f"{soak.slowest:.2f} s at most",
            soak.slowest <= HANG_SECONDS,
        )
        yield Bar(
            f"{where}, memory grows by less than 5 %",
            f"{100 * (soak.growth - 1):+.1f} %",
            soak.growth < GROWTH,
        )


# In process


class Store:
    """A Redis of a few sessions that nothing changes: the replies that the scripts would give."""

    batch_max, in_flight_max, node_of = 256, 4, None

    def __init__(self) -> None:
        self.live: dict[int, tuple[bytes, int]] = {}
        self.records: dict[str, tuple[bytes, int]] = {}
        self.objects: list[list[bytes]] = []
        self.tokens: list[bytes] = [tokens.make(7).encode(), b"ses_", b"", b"x" * 49]
        for number, (user, state) in enumerate([(7, 1), (7, 1), (7, 0), (8, 1)], 1):
            token = tokens.make(user)
            record = f"{NOW} 0 1800 {state} {number} {user}:móvil".encode()
            key = f"sesiones:{{{tokens.bucket(token)}}}:h:{tokens.digest(token)}"
            self.records[key] = record, NOW + 1800
            self.tokens += [token.encode()] * 2
            members = [number, user, f'"{token}"', NOW, NOW + 1800, state, NOW, '"móvil"']
            self.objects.append([str(member).encode() for member in members])
            if state:
                self.live[number] = token.encode(), user

    async def execute(
        self, *arguments: Any, keys: Sequence[str] = (), on_reply: OnReply | None = None, **_: Any
    ) -> Any:
        tagged = [arguments[-1], self._reply(arguments, keys)]
        return tagged if on_reply is None else on_reply(tagged)

    def _reply(self, arguments: tuple[Any, ...], keys: Sequence[str]) -> Any:
        found: list[Any] = [self.records.get(key, (None, None)) for key in keys]
        match arguments[1]:
            case CREATE.sha:
                user, device = arguments[7:9]
                return [f"{NOW} 0 1800 1 4096 {user}:{device}".encode(), NOW + 1800, []]
            case UPDATE.sha:
                return self._update(found[0], arguments[4:])
            case END.sha | END_ALL.sha:
                caller, designated = (text and text.partition(b":")[0].split() for text, _ in found)
                if not caller or caller[3] != b"1":
                    return -1
                if designated and designated[5] != caller[5]:
                    return -2
                return [[b"A" * 22, *designated[4:]]] if designated else []
        return [*itertools.chain(*found), 0, []]

    def on_owner_change(self, _: object) -> None:
        """Nothing ever changes."""

    def _update(self, record: Any, given: Sequence[Any]) -> list[Any]:
        text, expiry = record
        if text is None:
            return [b"absent", None]
        begun, *_, number, user = text.partition(b":")[0].split()
        if [b"%d" % value for value in given[:3]] != [number, user, begun]:
            return [b"immutable", b"ID_Usuario"]
        if given[3] <= given[5]:
            return [b"dates", b"window"]
        return [b"ok", text, expiry]

    async def aclose(self) -> None:
        pass


class Transport:
    """What the service writes, and how it leaves the connection."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closing = False
        self.ended = False

    def write(self, data: bytes) -> None:
        if self.ended and not self.closing:
            raise RuntimeError("written after write_eof()")  # as asyncio does
        self.written += data

    def close(self) -> None:
        self.closing = self.ended = True

    abort = close

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 8000) if name in ("peername", "sockname") else default


@dataclass
class Application:
    """The application on a store of this module, for connections that are none."""

    config: uvicorn.Config
    state: ServerState
    app_state: dict[str, Any]
    errors: list[str]
    """What it logs as an error, or leaves to the event loop."""


class Wire:
    """One connection to the protocol: input after input, for as long as it is kept."""

    def __init__(self, application: Application, protocol: type[HttpProtocol] = FastLane) -> None:
        self.transport = Transport()
        self.protocol = protocol(application.config, application.state, dict(application.app_state))
        self.protocol.connection_made(self.transport)  # type: ignore[arg-type]

    def send(self, piece: bytes) -> None:
        if not self.transport.ended:
            self.protocol.data_received(piece)

    @property
    def within(self) -> bool:
        """Whether a request has come in part."""
        return self.protocol._in_head or self.protocol._in_body

    @property
    def owed(self) -> bool:
        return not self.transport.ended and self.protocol._owes()

    def end(self) -> None:
        """The client shuts its side, as asyncio would tell."""
        if not self.transport.closing and not self.protocol.eof_received():
            self.transport.close()

    def lose(self) -> None:
        self.protocol.connection_lost(None)


class Errors(logging.Handler):
    """What the code under test logs as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(logging.Formatter().format(record))


@asynccontextmanager
async def application(store: Store) -> AsyncIterator[Application]:
    errors = Errors()
    logging.getLogger().addHandler(errors)
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: errors.found.append(repr(context))
    )
    with patch("sesiones.store.connect", return_value=store):
        app = create_app(Settings.read(SETTINGS, {}))
    config = uvicorn.Config(
        app, ws="none", http=FastLane, log_config=None, access_log=False, proxy_headers=False
    )
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Thu, 01 Jan 2026 00:00:00 GMT")]
    try:
        async with app.router.lifespan_context(app) as app_state:
            yield Application(config, state, dict(app_state or {}), errors.found)
    finally:
        logging.getLogger().removeHandler(errors)


WIRES = 64
ROUND_TURNS = 40
"""Of the event loop, in which a request that came whole is answered."""


async def in_process(seed: str, inputs: int, reports: "Connection | None" = None) -> Soak:
    """The inputs of one process; how many have been sent goes to ``reports`` now and then."""
    soak, store = Soak(), Store()
    mutations = Mutations(seed, store.tokens, store.objects, KEY.encode())
    oracle = Oracle(store.live, KEY.encode())
    before = 0
    async with application(store) as served:
        wires = [Wire(served) for _ in range(WIRES)]
        while soak.inputs < inputs and len(soak.violations) < 10:
            sent = [mutations.make() for _ in wires]
            await _round(wires, sent, oracle, soak)
            if served.errors:
                soak.violations.append(f"seed {seed}: {served.errors.pop(0)}, after {sent!r}")
            for number, wire in enumerate(wires):
                if wire.transport.ended:
                    wire.lose()
                    wires[number] = Wire(served)
            if not before and soak.inputs >= inputs * WARM:
                before = resident(os.getpid())
            if reports is not None and soak.inputs // WIRES % 100 == 0:
                reports.send(soak.inputs)
        for wire in wires:
            wire.lose()
    soak.violations = [f"seed {seed}: {violation}" for violation in soak.violations]
    soak.growth = resident(os.getpid()) / before if before else 1.0
    return soak


async def _round(
    wires: Sequence[Wire], sent: Sequence[Sequence[bytes]], oracle: Oracle, soak: Soak
) -> None:
    """One input over each connection, piece by piece, and what comes of it."""
    marks = [len(wire.transport.written) for wire in wires]
    for at in range(max(map(len, sent))):
        for wire, pieces in zip(wires, sent, strict=True):
            if at < len(pieces):
                wire.send(pieces[at])
        await asyncio.sleep(0)
    begun = time.monotonic()
    for _ in range(ROUND_TURNS):
        if not any(wire.owed for wire in wires):
            break
        await asyncio.sleep(0)
    for wire in wires:
        if wire.within:
            wire.end()
    while waiting := [n for n, wire in enumerate(wires) if wire.owed]:
        if time.monotonic() - begun > HANG_SECONDS:
            soak.violations += [f"no answer to {sent[number]!r}" for number in waiting]
            for number in waiting:
                wires[number].transport.close()
            break
        await asyncio.sleep(0)
    soak.slowest = max(soak.slowest, time.monotonic() - begun)
    for wire, mark, pieces in zip(wires, marks, sent, strict=True):
        soak.inputs += 1
        received = bytes(wire.transport.written[mark:])
        try:
            statuses = oracle.check(b"".join(pieces), received, closed=wire.transport.ended)
        except Violation as violation:
            soak.violations.append(f"{violation}, after {pieces!r}: {received!r}")
        else:
            soak.statuses.update(statuses)
        wire.transport.written.clear()
        if wire.within and not wire.transport.ended:
            soak.violations.append(f"its end was not seen: {pieces!r}")


def in_processes(seed: str, inputs: int) -> Soak:
    """The inputs, shared among as many processes as there are processors."""
    context = multiprocessing.get_context("spawn")
    count = os.cpu_count() or 1
    reports: dict[Connection, int] = {}
    processes = []
    for number in range(count):
        ours, theirs = context.Pipe(duplex=False)
        arguments = f"{seed}:{number}", inputs // count, theirs
        processes.append(context.Process(target=_serve, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
        reports[ours] = 0
    total = Soak()
    progress = Progress("in process", inputs)
    while reports:
        for pipe in wait(list(reports)):
            assert isinstance(pipe, Connection)
            report = pipe.recv()
            if isinstance(report, Soak):
                total.add(report)
                del reports[pipe]
            else:
                for _ in range(report - reports[pipe]):
                    progress.step()
                reports[pipe] = report
    progress.end()
    for process in processes:
        process.join()
    return total


def _serve(seed: str, inputs: int, reports: Connection) -> None:
    reports.send(uvloop.run(in_process(seed, inputs, reports)))


# Over sockets


CLIENTS = 32
RESETS = 0.05
STALLS = 0.002
"""The shares of inputs whose client resets the connection, or waits without shutting its side."""


def over_sockets(seed: str, inputs: int) -> Soak:
    with RedisServer() as redis, Service(SESIONES_REDIS_URL=redis.url, **SETTINGS) as service:
        soak = asyncio.run(_Sockets(service, seed, inputs).run())
        errors = re.findall(r"^.* ERROR .*$|^Traceback.*$", service.log, re.MULTILINE)
        soak.violations += [f"seed {seed}: {error}" for error in errors]
        return soak


class _Sockets:
    """Clients of one service, each with an input after the other, on a connection each."""

    def __init__(self, service: Service, seed: str, inputs: int) -> None:
        assert service.process is not None
        self._service, self._seed, self._inputs = service, seed, inputs
        self._pid = service.process.pid
        self._soak = Soak()
        self._tokens: list[bytes] = [tokens.make(7).encode(), b"ses_", b"", b"x" * 49]
        self._objects: list[list[bytes]] = []
        self._oracle = Oracle({}, KEY.encode())
        self._progress = Progress("over sockets", inputs)
        self._begun = 0
        self._before = 0

    async def run(self) -> Soak:
        self._renew()
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._client(f"{self._seed}:{number}"))
        self._progress.end()
        self._soak.growth = resident(self._pid) / self._before
        self._soak.inputs = self._begun
        return self._soak

    def _renew(self) -> None:
        """Sessions that are live, in the place of those that a request has ended."""
        del self._tokens[4:]
        del self._objects[:]
        for user in (7, 7, 8):
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
            body = b'{"ID_Usuario": %d, "Dispositivo": "soak"}' % user
            sesion = self._service.request("POST", "/sesiones", headers, body).json()
            token = sesion["Token_Sesion"].encode()
            self._tokens.append(token)
            self._oracle.live[sesion["ID_Sesion"]] = token, user
            texts = [f'"{v}"' if isinstance(v, str) else str(v) for v in sesion.values()]
            self._objects.append([text.encode() for text in texts])

    async def _client(self, seed: str) -> None:
        mutations = Mutations(seed, self._tokens, self._objects, KEY.encode())
        manners = random.Random(seed)
        while self._begun < self._inputs and len(self._soak.violations) < 10:
            self._begun += 1
            self._progress.step()
            if self._begun % 200 == 0:
                self._renew()
            if not self._before and self._begun >= self._inputs * WARM:
                self._before = resident(self._pid)
            pieces = mutations.make()
            try:
                await self._exchange(pieces, manners)
            except Violation as violation:
                self._soak.violations.append(f"seed {seed}: {violation}, after {pieces!r}")

    async def _exchange(self, pieces: Sequence[bytes], manners: random.Random) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._service.port)
        roll = manners.random()
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(manners.choice((0, 0, 0.002)))
            if roll < RESETS:
                linger = struct.pack("ii", 1, 0)
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            # Who has sent nothing yet is not slow, but idle.
            stalls = roll > 1 - STALLS and b"".join(pieces).strip(b"\r\n") != b""
            if not stalls and not writer.transport.is_closing():
                writer.write_eof()
            received = await self._read(reader, stalls)
        except OSError:
            return  # what comes behind a request that closes may meet a closed connection
        finally:
            writer.transport.abort() if roll < RESETS else writer.close()
        self._soak.statuses.update(
            self._check(b"".join(pieces), received, late=stalls, oracle=self._oracle)
        )

    async def _read(self, reader: asyncio.StreamReader, stalls: bool) -> bytes:
        """Everything up to the end; of a client that stalls, or up to where nothing more comes."""
        begun, received = time.monotonic(), bytearray()
        seconds = LATE_SECONDS if stalls else HANG_SECONDS
        try:
            async with asyncio.timeout(seconds):
                while chunk := await reader.read(65536):
                    received += chunk
        except TimeoutError:
            if not stalls or not received:
                raise Violation(f"hangs, after {bytes(received)!r}") from None
        if not stalls:
            self._soak.slowest = max(self._soak.slowest, time.monotonic() - begun)
        return bytes(received)

    @staticmethod
    def _check(data: bytes, received: bytes, *, late: bool, oracle: Oracle) -> list[int]:
        if late and b"HTTP/1.1 408 " in received:
            received = received[: received.index(b"HTTP/1.1 408 ")]
        return oracle.check(data, received, closed=True)
