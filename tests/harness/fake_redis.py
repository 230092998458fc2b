"""A Redis that does what the test says: its replies, silences and lost connections.

On a simulated network and clock (Network, simulated): thousands of faults are tried in seconds, and
a call that would wait for ever is found out at once. Over a socket (serving): where the socket, or
redis-py's part in opening it, matters.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hiredis
import pytest
from redis.asyncio.connection import Connection
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError

from sesiones.redis_client import cluster, opening, single
from sesiones.redis_client import connection as connections
from tests.harness.virtual_loop import CLOCK, virtual

Address = tuple[str, int]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

LATENCY_SECONDS = 0.001
TIMEOUT_SECONDS = 0.2
"""Of the simulated network's clients."""


# Over a socket.


@contextlib.asynccontextmanager
async def serving(handle: Handler, path: Path | None = None) -> AsyncIterator[str]:
    """The host and port, or the path, of a server that handles each connection so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The other side may reset the connection at any time.
        with contextlib.suppress(OSError):
            await handle(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    if path is None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    else:
        server = await asyncio.start_unix_server(serve, path)
        address = str(path)
    async with server:
        yield address
        await asyncio.sleep(0.02)  # until the handlers have seen the end


# The simulated network.


class Wire:
    """The transport of a connection, and its other end. Bytes go there at once; what the other end
    says waits in ``output`` until deliver()."""

    def __init__(self, received: Callable[[list[bytes]], None]) -> None:
        """``received`` is called with each complete command."""
        self.output = bytearray()
        self.swallows = False
        """Whether nothing arrives any more, in either direction, without a sign."""
        self.swallowed: list[list[bytes]] = []
        self.write_fails_after: int | None = None
        """The next write raises when so many of its bytes are out."""
        self.write_error: type[BaseException] = OSError
        self.protocol: asyncio.Protocol | None = None
        self._received = received
        self._commands = hiredis.Reader()
        self._closing = False
        self._lingering = True

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes) -> None:
        if self._closing:
            return
        sent = len(data)
        if self.write_fails_after is not None:
            sent = min(self.write_fails_after, sent)
        self._commands.feed(data[:sent])
        try:
            while command := self._commands.gets():
                if not all(isinstance(word, bytes) for word in command):
                    raise hiredis.ProtocolError("a word is no string")
                if self.swallows:
                    self.swallowed.append(command)
                else:
                    self._received(command)
        except hiredis.ProtocolError:  # as Redis does
            self.lose()
        if self.write_fails_after is not None:
            self.write_fails_after = None
            raise self.write_error("the write fails")

    def deliver(self, size: int) -> None:
        """The next ``size`` bytes arrive."""
        piece = bytes(self.output[:size])
        del self.output[:size]
        if piece and not self._closing and not self.swallows:
            assert self.protocol is not None
            self.protocol.data_received(piece)

    def lose(self, error: Exception | None = None) -> None:
        """The connection ends, as by the other end."""
        if not self._closing:
            self._closing = True
            assert self.protocol is not None
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, error)

    def abort(self) -> None:
        assert not self._lingering, "an abort without a reset: what is unsent is still carried out"
        self.lose()

    def close(self) -> None:
        self.lose()

    def get_extra_info(self, name: str) -> "Wire":
        assert name == "socket"
        return self

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER)
        assert value == struct.pack("ii", 1, 0)
        self._lingering = False


_PARSER = Connection()._parser  # it takes a millisecond: redis-py looks its own version up
"""Its error classes are all that the connection uses of it."""


def opened(wire: Wire, host: str = "fake", port: int = 1) -> Any:
    """What redis-py hands over when it has opened a connection."""
    return SimpleNamespace(
        host=host,
        port=port,
        _writer=SimpleNamespace(transport=wire),
        _reader=SimpleNamespace(at_eof=lambda: False),
        _parser=_PARSER,
    )


def packed(reply: Any) -> bytes:
    """In RESP2. A bytearray has been packed already."""
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytearray():
            return bytes(reply)
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case Exception():
            return b"-%b\r\n" % str(reply).encode()
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(map(packed, reply))
    raise TypeError(reply)


class FakeServer:
    """Answers each command after a moment, in pieces; until it is told to behave otherwise."""

    def __init__(self, address: Address, answer: Callable[..., Any]) -> None:
        self.address = address
        self.answer: Callable[[list[bytes], bool], Any] = partial(answer, self)
        """The reply to a command, and whether it came after ASKING."""
        self.wires: list[Wire] = []
        self.accepted = 0
        self.up = True
        self.opening_seconds = LATENCY_SECONDS
        self.piece = 10_000
        self.next_is_error = False
        self._silent = False
        self._cut_after: int | None = None

    def accept(self) -> Wire:
        if not self.up:
            raise RedisConnectionError("refused")
        self.accepted += 1
        asking = False

        def received(command: list[bytes]) -> None:
            nonlocal asking
            reply = self.answer(command, asking)
            asking = command == [b"ASKING"]
            if self.next_is_error:
                self.next_is_error = False
                reply = RuntimeError(f"ERR {command[1:2]}")
            self.say(wire, packed(reply))

        wire = Wire(received)
        self.wires.append(wire)
        return wire

    def say(self, wire: Wire, data: bytes) -> None:
        idle = not wire.output
        wire.output += data
        if idle:
            self._later(wire)

    def _later(self, wire: Wire) -> None:
        asyncio.get_running_loop().call_later(LATENCY_SECONDS, self._pump, wire)

    def _pump(self, wire: Wire) -> None:
        if self._silent or wire.is_closing():
            return
        size = self.piece
        if self._cut_after is not None:
            size = min(size, self._cut_after)
            self._cut_after -= size
        wire.deliver(size)
        if self._cut_after == 0:
            self._cut_after = None
            wire.lose()
        elif wire.output:
            self._later(wire)

    def silence(self, silent: bool) -> None:
        """The connections stay, and what is due to them is said afterwards."""
        woken = self._silent and not silent
        self._silent = silent
        if woken:
            for wire in self.wires:
                if wire.output:
                    self._later(wire)

    def swallow(self) -> Wire:
        """The connections that are open lose all that comes and do not end: as behind a firewall
        that has forgotten them. The newest one is returned."""
        for wire in self.wires:
            wire.swallows = True
        return self.wires[-1]

    def cut_after(self, size: int) -> None:
        """A connection is lost when so many more bytes have come through."""
        self._cut_after = max(size, 1)

    def stop(self) -> None:
        self.up = False
        for wire in self.wires:
            wire.lose()
        self.wires.clear()

    def mend(self) -> None:
        self.up, self.piece, self.next_is_error, self._cut_after = True, 10_000, False, None
        for wire in self.wires:
            wire.write_fails_after = None
        self.silence(False)


class Network:
    """Two servers that can be masters, and three Sentinels. ``master``: the one that the Sentinels
    name; ``boundary``: the first slot of the second one on the Cluster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.master = 0
        self.boundary = 8192
        self.moving = False
        """Whether the first server's slots move to the second one key by key: their keys are
        there."""
        self.on_cluster = False
        self.nodes = [FakeServer(("node", port), self._answer) for port in (1, 2)]
        self.sentinels = [FakeServer(("sentinel", port), self._answer) for port in (3, 4, 5)]
        self._servers = {each.address: each for each in [*self.nodes, *self.sentinels]}
        for module in connections, single, cluster:
            monkeypatch.setattr(module, "time", CLOCK)
        for module in single, cluster:
            monkeypatch.setattr(module, "ConnectionPool", self.pool)

        async def resolve(*_: object) -> None:
            pass

        monkeypatch.setattr(opening, "_resolve", resolve)

    def pool(self, host: str = "node", port: int = 1, **_: object) -> "_Pool":
        return _Pool(self._servers[host, port])

    def server(self) -> single.Server:
        return single.Server(self.pool("node", 1), TIMEOUT_SECONDS)  # type: ignore[arg-type]

    def sentinel_master(self) -> single.SentinelMaster:
        addresses = [sentinel.address for sentinel in self.sentinels]
        return single.SentinelMaster(addresses, "mymaster", {}, {}, TIMEOUT_SECONDS)

    def cluster(self) -> cluster.Cluster:
        self.on_cluster = True
        return cluster.Cluster([node.address for node in self.nodes], {}, TIMEOUT_SECONDS)

    def _answer(self, server: FakeServer, command: list[bytes], asking: bool) -> Any:
        match command:
            case [b"ECHO", number, key]:
                slot = key_slot(key)
                owner = self.nodes[slot >= self.boundary]
                if self.on_cluster and server is not owner and not (self.moving and asking):
                    return RuntimeError("MOVED {} {}:{}".format(slot, *owner.address))
                if self.on_cluster and self.moving and server is self.nodes[0]:
                    return RuntimeError("ASK {} {}:{}".format(slot, *self.nodes[1].address))
                return number
            case [b"PING"]:
                return b"PONG"
            case [b"ROLE"]:
                return [b"master", 0, []]
            case [b"WAIT", *_]:
                return 1
            case [b"TIME"]:
                return [b"1", b"2"]
            case [b"ASKING"]:
                return b"OK"
            case [b"SENTINEL", *_]:
                host, port = self.nodes[self.master].address
                return [host.encode(), b"%d" % port]
            case [b"CLUSTER", b"SLOTS"]:
                bounds = (0, self.boundary - 1), (self.boundary, 16383)
                return [
                    [first, last, [node.address[0].encode(), node.address[1], b"%040d" % index]]
                    for index, ((first, last), node) in enumerate(
                        zip(bounds, self.nodes, strict=True)
                    )
                    if first <= last
                ]
        return RuntimeError(f"ERR unknown {command}")


class _Pool:
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def make_connection(self) -> "_Opening":
        return _Opening(self._server)


class _Opening:
    """redis-py's connection, until it is open."""

    def __init__(self, server: FakeServer) -> None:
        self.host, self.port = server.address
        self._server = server
        self._writer = None

    async def connect(self) -> None:
        await asyncio.sleep(self._server.opening_seconds)
        self.__dict__.update(vars(opened(self._server.accept(), self.host, self.port)))


def simulated(
    test: Callable[[Network, Any], Coroutine[Any, Any, None]], kind: str = "server"
) -> Callable[[], None]:
    """A test of the commands of a simulated network, on the clock of that: ``kind`` is ``server``,
    ``sentinel_master`` or ``cluster``."""

    async def work() -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            network = Network(monkeypatch)
            commands = getattr(network, kind)()
            try:
                await test(network, commands)
            finally:
                await commands.aclose()
                await asyncio.sleep(0)

    work.__name__, work.__doc__, work.__module__ = test.__name__, test.__doc__, test.__module__
    return virtual(work)
