"""Checks at a rate, with latencies to the microsecond: for a service at its limit.

It is the open loop of arrivals.py for one kind of request, without asyncio, which would take twice
the processor time for each, and that from the service where both share a machine. An arrival takes
a free connection or waits for one, and its latency counts from its arrival: a server that stalls
for a second delays everything that arrived in that second, and all of it is in the percentiles.
``Step.service_times`` are what a closed loop would have reported.

A reply is right when it is a 200 for the token's user. Only HTTP/1.1 with a Content-Length is
understood: what the service answers. With https the certificate must be one that the system trusts;
SSL_CERT_FILE names another authority.
"""

import ctypes
import multiprocessing
import random
import re
import select
import signal
import socket
import ssl
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection as Pipe
from typing import Any
from urllib.parse import urlsplit

DRAIN_SECONDS = 1.0
"""How long after a step what waits for a connection is still sent."""
REPLY_SECONDS = 1.0
"""How long after that a reply may take."""
RECONNECT_SECONDS = 0.1
_PR_SET_TIMERSLACK = 29  # prctl(2)

_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3})")
_FIELD = re.compile(rb"\r\n(content-length|x-id-usuario|connection):[ \t]*([^\r\n]*)", re.I)

clock = time.monotonic


@dataclass
class Step:
    """What came of a rate that was offered. All times are in seconds."""

    arrivals: int = 0
    answered: int = 0
    """Right replies to what was sent before the step's end."""
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    """Of right replies, from arrival; for what never got one, how long it had waited at the end."""
    service_times: "array[float]" = field(default_factory=lambda: array("d"))
    """Of right replies, from sending."""
    lateness: "array[float]" = field(default_factory=lambda: array("d"))
    """From arrival to sending where a connection was free: the generator's own delay."""
    unsent: int = 0
    """No connection was free up to the end: the rate was too high."""
    failures: Counter[str] = field(default_factory=Counter)
    busy: float = 0.0
    """The share of time in which the busiest process did not wait for anything."""

    def add(self, other: "Step") -> None:
        self.arrivals += other.arrivals
        self.answered += other.answered
        self.latencies.extend(other.latencies)
        self.service_times.extend(other.service_times)
        self.lateness.extend(other.lateness)
        self.unsent += other.unsent
        self.failures += other.failures
        self.busy = max(self.busy, other.busy)


class _Connection:
    """A socket, and the request that is out on it."""

    __slots__ = ("arrival", "received", "sent", "sock", "user")

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext | None) -> None:
        self.sock = socket.create_connection(address, timeout=5)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname=address[0])
        self.sock.setblocking(False)
        self.received = b""
        self.user: str | None = None
        self.arrival = self.sent = 0.0


class Generator:
    """Connections of one process to the server. Raises OSError when it does not listen."""

    def __init__(
        self, url: str, sessions: Sequence[tuple[int, str]], connections: int, seed: int
    ) -> None:
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address = parts.hostname or "", parts.port or (443 if self._tls else 80)
        self._head = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nX-Auth-Token: "
        self._sessions = sessions
        self._random = random.Random(seed)
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        # In turn, so that the server closes none of them for idleness.
        self._idle: deque[_Connection] = deque()
        self._lost = 0
        self._lost_at = 0.0
        # Without it the kernel adds up to 50 us to each wait.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        for _ in range(connections):
            self._open()

    def run(self, rate: float, start: float, seconds: float) -> Step:
        """Offer ``rate`` requests a second from ``start`` (on the clock) on."""
        step, waiting = Step(), deque[float]()
        end = start + seconds
        drained = end + DRAIN_SECONDS
        deadline = drained + REPLY_SECONDS
        entered, idle_seconds = clock(), 0.0
        arrival = start + self._random.expovariate(rate)
        while True:
            now = clock()
            while arrival <= now and arrival < end:
                step.arrivals += 1
                if self._idle:
                    step.lateness.append(now - arrival)
                    self._send(step, self._idle.popleft(), arrival, now)
                else:
                    waiting.append(arrival)
                arrival += self._random.expovariate(rate)
            while waiting and self._idle and now < drained:
                self._send(step, self._idle.popleft(), waiting.popleft(), now)
            if self._lost and now > self._lost_at + RECONNECT_SECONDS:
                self._reconnect(now)
            nothing_out = len(self._idle) == len(self._connections)
            nothing_left = arrival >= end and (not waiting or now >= drained)
            if (nothing_left and nothing_out) or now > deadline:
                break
            moments = (arrival if arrival < end else deadline, drained, deadline)
            until = min((moment for moment in moments if moment > now), default=now)
            if self._lost:
                until = min(until, self._lost_at + RECONNECT_SECONDS)
            # select() waits for microseconds, epoll only for milliseconds.
            if (wait := until - clock()) > 0:
                before = clock()
                select.select([self._epoll], [], [], wait)
                idle_seconds += clock() - before
            for descriptor, _ in self._epoll.poll(0):
                self._receive(step, self._connections[descriptor], end)
        self._give_up(step, waiting)
        step.busy = 1 - idle_seconds / (clock() - entered)
        return step

    def close(self) -> None:
        for connection in self._connections.values():
            connection.sock.close()
        self._epoll.close()

    def _open(self) -> None:
        connection = _Connection(self._address, self._tls)
        self._connections[connection.sock.fileno()] = connection
        self._epoll.register(connection.sock.fileno(), select.EPOLLIN)
        self._idle.append(connection)

    def _reconnect(self, now: float) -> None:
        self._lost_at = now
        try:
            while self._lost:
                self._open()
                self._lost -= 1
        except OSError:
            pass  # it is tried again later

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection.sock.fileno()]
        connection.sock.close()  # leaves the epoll by itself
        if connection in self._idle:
            self._idle.remove(connection)
        self._lost += 1

    def _fail(self, step: Step, connection: _Connection, why: str) -> None:
        if connection.user is not None:
            step.failures[why] += 1
        self._drop(connection)

    def _send(self, step: Step, connection: _Connection, arrival: float, now: float) -> None:
        user, token = self._random.choice(self._sessions)
        connection.user, connection.arrival, connection.sent = str(user), arrival, now
        try:
            connection.sock.send(f"{self._head}{token}\r\n\r\n".encode())
        except OSError:
            self._fail(step, connection, "connection lost")

    def _receive(self, step: Step, connection: _Connection, end: float) -> None:
        try:
            data = connection.sock.recv(65536)
        except ssl.SSLWantReadError:  # a part of a TLS record, or one without data
            return
        except OSError:
            data = b""
        if not data:
            self._fail(step, connection, "connection lost")
            return
        connection.received += data
        try:
            reply = parse(connection.received)
        except ValueError:
            self._fail(step, connection, "not HTTP/1.1 with a Content-Length")
            return
        if reply is None:  # the rest is on its way
            return
        status, user, closes = reply
        now = clock()
        if status != 200:
            step.failures[f"status {status}"] += 1
        elif user != connection.user:
            step.failures["another user's session"] += 1
        else:
            step.latencies.append(now - connection.arrival)
            step.service_times.append(now - connection.sent)
            step.answered += connection.sent <= end
        connection.received, connection.user = b"", None
        if closes:
            self._drop(connection)
        else:
            self._idle.append(connection)

    def _give_up(self, step: Step, waiting: deque[float]) -> None:
        """What has no reply by now waited this long at the least."""
        now = clock()
        gone = not self._connections
        for connection in list(self._connections.values()):
            if connection.user is not None:
                step.latencies.append(now - connection.arrival)
                self._fail(step, connection, "no reply")
        step.latencies.extend(now - arrival for arrival in waiting)
        step.unsent = len(waiting)
        if gone and waiting:
            step.failures["no connection"] += len(waiting)


def parse(data: bytes) -> tuple[int, str, bool] | None:
    """Status, X-ID-Usuario ("" without) and whether the connection closes; None when the response
    is not whole. Raises ValueError."""
    head, blank, body = data.partition(b"\r\n\r\n")
    if not blank:
        return None
    status = _STATUS.match(head)
    fields = {name.lower(): value for name, value in _FIELD.findall(head)}
    if status is None or b"content-length" not in fields:
        raise ValueError("not HTTP/1.1 with a Content-Length")
    missing = int(fields[b"content-length"]) - len(body)
    if missing > 0:
        return None
    if missing < 0:
        raise ValueError("more than the Content-Length")
    closes = fields.get(b"connection", b"").lower() == b"close"
    return int(status[1]), fields.get(b"x-id-usuario", b"").decode("latin-1"), closes


class Generators:
    """Processes that share a rate and the connections. Raises OSError, ValueError."""

    def __init__(
        self, url: str, sessions: Sequence[tuple[int, str]], connections: int, processes: int
    ) -> None:
        self._stack = ExitStack()
        self._pipes: list[Pipe[Any, Any]] = []
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # at its start it unblocks Ctrl-C
        try:
            for number in range(processes):
                # The first ones take what does not divide.
                share = (connections + processes - 1 - number) // processes
                ours, theirs = context.Pipe()
                self._stack.enter_context(ours)
                process = context.Process(
                    target=_serve, args=(theirs, url, sessions, share, number), daemon=True
                )
                # A process starts with Ctrl-C blocked, and stays so: it is the parent's to handle.
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    process.start()
                    self._stack.callback(process.join)
                    self._stack.callback(process.terminate)  # before it: a step is not waited for
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
                theirs.close()
                self._pipes.append(ours)
            self._replies()
        except BaseException:
            self.close()
            raise

    def run(self, rate: float, seconds: float) -> Step:
        """Offer ``rate`` requests a second in all."""
        start = clock() + 0.02
        for pipe in self._pipes:
            pipe.send((rate / len(self._pipes), start, seconds))
        total = Step()
        for step in self._replies():
            total.add(step)
        return total

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> "Generators":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _replies(self) -> list[Any]:
        try:
            replies = [pipe.recv() for pipe in self._pipes]
        except EOFError:
            raise OSError("a process of the load generator ended") from None
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies


def _serve(
    pipe: "Pipe[Any, Any]",
    url: str,
    sessions: Sequence[tuple[int, str]],
    connections: int,
    seed: int,
) -> None:
    """One process: steps in, what came of them out, until the pipe is closed."""
    try:
        generator = Generator(url, sessions, connections, seed)
    except (OSError, ValueError) as error:  # a ValueError for a name that is none, as a..b
        pipe.send(error)
        return
    pipe.send(None)
    try:
        while True:
            pipe.send(generator.run(*pipe.recv()))
    except (EOFError, OSError):
        generator.close()
