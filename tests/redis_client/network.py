"""Servers on a simulated network: single ones, a Cluster of two masters, and Sentinels."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError

from sesiones.redis_client import cluster, single
from sesiones.redis_client import connection as connections
from tests.redis_client.fakes import CLOCK, Wire, opened, packed

Address = tuple[str, int]
LATENCY_SECONDS = 0.001


class FakeServer:
    """Answers each command after a moment, in pieces; until it is told to behave otherwise."""

    def __init__(self, address: Address, answer: Callable[..., Any]) -> None:
        self.address = address
        self.answer = partial(answer, self)
        self.wires: list[Wire] = []
        self.up = True
        self.piece = 10_000
        self.next_is_error = False
        self._silent = False
        self._cut_after: int | None = None

    def accept(self) -> Wire:
        if not self.up:
            raise RedisConnectionError("refused")
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

        monkeypatch.setattr(single, "_resolve", resolve)

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
        await asyncio.sleep(LATENCY_SECONDS)
        self.__dict__.update(vars(opened(self._server.accept(), self.host, self.port)))


TIMEOUT_SECONDS = 0.2
