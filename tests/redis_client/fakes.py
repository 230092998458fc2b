"""Redis, the network and the clock, simulated: thousands of faults are tried in seconds, and a call
that would wait for ever is found out at once."""

import asyncio
import selectors
import socket
import struct
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar

import hiredis
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis.asyncio.connection import Connection

from tests.harness.stores import EXAMPLES

Result = TypeVar("Result")

QUICK = settings(
    max_examples=20 * EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""Of a property whose examples take about a millisecond."""


class _Unprintable:
    def __str__(self) -> str:
        raise ZeroDivisionError


UNPACKABLE: list[Any] = [
    None,
    True,
    "\ud800",
    _Unprintable(),
    [],
    b"x".join,
    ("a",),
    {"a": 1},
    bytearray(b"x"),
]
"""Arguments of a command that no bytes can be made of."""


class _JumpingSelector(selectors.SelectSelector):
    """Watches no socket. Instead of waiting for a timer, it moves the clock to it."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("every task waits, and no timer is set")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = _JumpingSelector()
        super().__init__(self.jumping)
        self.unheard: list[dict[str, Any]] = []
        """What the loop complains of: each would be lines in a log."""
        self.set_exception_handler(lambda _, context: self.unheard.append(context))

    def time(self) -> float:
        return self.jumping.now


def run(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run it on a loop with a clock of its own; nothing may be left for the loop to complain of."""
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(work())
    assert loop.unheard == []
    return result


CLOCK = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
"""In the place of the module ``time``, where code under test runs on a VirtualLoop."""


class Wire:
    """The transport of a connection, and its other end. Bytes go there at once; what the other end
    says waits in ``output`` until deliver()."""

    def __init__(self, received: Callable[[list[bytes]], None]) -> None:
        """``received`` is called with each complete command."""
        self.output = bytearray()
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
        if piece and not self._closing:
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


def opened(wire: Wire, host: str = "fake", port: int = 1) -> Any:
    """What redis-py hands over when it has opened a connection."""
    return SimpleNamespace(
        host=host,
        port=port,
        _writer=SimpleNamespace(transport=wire),
        _reader=None,
        _parser=Connection(host=host, port=port)._parser,
    )


def packed(reply: Any) -> bytes:
    """In RESP2."""
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case Exception():
            return b"-%b\r\n" % str(reply).encode()
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(map(packed, reply))
    raise TypeError(reply)


def found_out(programs: st.SearchStrategy[Any], played: Callable[[Any], None]) -> None:
    """Some program of many fails."""

    @settings(
        max_examples=5000,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(programs)
    def search(program: Any) -> None:
        played(program)

    with pytest.raises((AssertionError, asyncio.InvalidStateError, pytest.fail.Exception)):
        search()
