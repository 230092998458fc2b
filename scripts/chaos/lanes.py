"""Whether the fast check answers what Starlette answers, byte for byte: two connections in process,
one with the fast check and one without, get the same bytes at the same time.

The conversations are made to confuse the fast check: pipelines, splits at any byte, clients that
leave or shut their side, and near-copies of requests that it has templates of, so that a message is
taken for another one wherever that is possible. A failure names the seed and what was sent.
"""

import asyncio
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import uvloop

from scripts.chaos import Bar
from scripts.chaos.inputs import (
    HANG_SECONDS,
    KEY,
    ROUND_TURNS,
    Application,
    Store,
    Wire,
    application,
)
from scripts.chaos.mutations import Mutations
from scripts.chaos.oracle import TOKEN
from sesiones import tokens
from sesiones.http.fast_check import FastCheckProtocol
from sesiones.http.protocol import BODY, HttpProtocol
from sesiones.http.templates import Kind
from tests.harness.progress import Progress

MESSAGES, SHORT_MESSAGES = 1_000_000, 6_000
PAIRS = 32
LOST = 0.03
HALF_CLOSED = 0.03
"""The shares of conversations in which the client leaves, or shuts its side."""
SETTLED = 0.3
"""The share of pieces that come only when all before them has been answered."""
MESSAGES_KEPT = 10
"""How many of a connection's last conversations are shown with a difference."""

HEADS = [
    b"GET /sesiones/self HTTP/1.1\r\nHost: h\r\n%b\r\n",
    b"HEAD /sesiones/self HTTP/1.1\r\nHost: h\r\n%b\r\n",
    b"GET /sesiones/verificar HTTP/1.1\r\nHost: h\r\n%b\r\n",
    b"HEAD /sesiones/verificar HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n%b\r\n",
    b"POST /sesiones/verificar/a/b?c=d HTTP/1.1\r\n%bHost: h\r\nContent-Length: 0\r\n\r\n",
    b"GET /sesiones/verificar/RTSP/1.1 HTTP/1.1\r\nhost: h\r\n%bConnection: keep-alive\r\n\r\n",
    b"GET /sesiones/self HTTP/1.1\r\nHost: h\r\nUser-Agent: x RTSP/1.1\r\n%bCookie: a=b\r\n\r\n",
]
CREDENTIALS = [b"X-Auth-Token: %b\r\n", b"x-auth-token:%b\r\n", b"Authorization: Bearer %b\r\n"]
PIECES = [b"", b"ses_", b"A", b" ", b"\r\n", b"\n", b"\r\n\r\n", b"\x00", b"X: ", b":", b"\xff"]
PIECES += [b"GET ", b"Host: h\r\n", b"x-auth-token: ", b"Connection: close\r\n", b"#", b"?"]
LINES = [b" RTSP/1.1\r\n", b" RTSP/1.0\r\n", b" HTTP/1.0\r\n", b" HTTP/1.2\r\n", b"  HTTP/1.1\r\n"]
FRAMED = re.compile(rb"content-length|transfer-encoding", re.IGNORECASE)


@dataclass
class Comparison:
    """What came of some messages."""

    messages: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)
    taken: Counter[str] = field(default_factory=Counter)
    """How many fast checks were parsed, and how many matched a template."""


class _CountingProtocol(FastCheckProtocol):
    """Counts the fast checks."""

    taken: ClassVar[Counter[str]] = Counter()

    def _ask(self, check: Any, token: bytes, kind: Kind) -> None:
        self.taken["parsed" if self._input is BODY else "matched"] += 1
        super()._ask(check, token, kind)


class Conversations:
    """An endless supply, the same for the same seed."""

    def __init__(self, seed: str, store: Store) -> None:
        self.random = random.Random(seed)
        self._tokens = [*store.tokens, *store.tokens[4:], tokens.make(7).encode()]
        self._mutations = Mutations(seed, store.tokens, store.objects, KEY.encode())
        self._head = b""

    def turn(self) -> None:
        """From now on another message is the one that becomes a template."""
        r = self.random
        self._head = r.choice(HEADS) % r.choice(CREDENTIALS)

    def make(self) -> tuple[list[bytes], int]:
        """What goes over one connection, in pieces, and how many messages that is."""
        r = self.random
        if r.random() < 0.4:
            return [self._known()], 1
        count = r.choice((1, 1, 1, 2, 3, 5))
        data = b"".join([self._message() for _ in range(count)])
        if r.random() < 0.05:
            data = self._mutations.damage(data)
        return (self._mutations.pieces(data) if r.random() < 0.4 else [data]), count

    def _message(self) -> bytes:
        roll = self.random.random()
        if roll < 0.4:
            return self._known()
        return self._near_copy() if roll < 0.8 else self._mutations.message()

    def _known(self) -> bytes:
        return self._head % self.random.choice(self._tokens)

    def _near_copy(self) -> bytes:
        r = self.random
        head, token = self._head.replace(b"%b", b"@"), r.choice(self._tokens)
        at = r.randrange(len(head) + 1)
        match r.randrange(5):
            case 0:  # the token, or a second one, in another place
                moved = head if r.random() < 0.5 else head.replace(b"@", b"")
                return (moved[:at] + token + moved[at:]).replace(b"@", r.choice(self._tokens))
            case 1:  # a token that is one byte more, less or other
                cut = r.randrange(len(token) + 1)
                other = token[:cut] + r.choice(PIECES) + token[cut + r.randrange(2) :]
                return head.replace(b"@", other)
            case 2:
                return head.replace(b"@", token).replace(b" HTTP/1.1\r\n", r.choice(LINES), 1)
            case 3:  # as many bytes, one of them other
                data = head.replace(b"@", token)
                at = r.randrange(len(data))
                return data[:at] + bytes([data[at] ^ 1 << r.randrange(8)]) + data[at + 1 :]
        data = head.replace(b"@", token)
        return data[:at] + r.choice(PIECES) + data[at + r.choice((0, 0, 1, 2, 49)) :]


class _Pair:
    """Two connections that get the same."""

    def __init__(self, served: Application, known: set[bytes]) -> None:
        self.fast, self.reference = Wire(served, _CountingProtocol), Wire(served, HttpProtocol)
        self.sent: list[list[bytes]] = []
        self.lost = False
        self._known = known

    @property
    def both(self) -> tuple[Wire, Wire]:
        return self.fast, self.reference

    @property
    def owed(self) -> bool:
        return not self.lost and any(wire.owed for wire in self.both)

    @property
    def ended(self) -> bool:
        return any(wire.transport.ended for wire in self.both)

    @property
    def within(self) -> bool:
        return any(wire.within for wire in self.both)

    def end(self) -> None:
        for wire in self.both:
            wire.end()

    def lose(self) -> None:
        self.lost = True
        for wire in self.both:
            wire.transport.close()
            wire.lose()

    def compare(self, *, whole: bool = True) -> tuple[str, list[int]]:
        """How the answers since the last time differ, or nothing, and their statuses. ``whole``:
        not when the client has left while answers were due."""
        fast, reference = (self._answers(wire) for wire in self.both)
        found = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", reference)]
        if fast != reference and not (
            not whole and (fast.startswith(reference) or reference.startswith(fast))
        ):
            return f"{fast!r}, not {reference!r}, to {self.sent[-MESSAGES_KEPT:]!r}", found
        if whole and self.fast.transport.ended != self.reference.transport.ended:
            return f"only one has closed: {self.sent[-MESSAGES_KEPT:]!r}", found
        return "", found

    def _answers(self, wire: Wire) -> bytes:
        answers = bytes(wire.transport.written)
        wire.transport.written.clear()
        # A new session's token is another one each time.
        return TOKEN.sub(lambda match: match[0] if match[0] in self._known else b"-", answers)


def play(short: bool) -> Iterator[Bar]:
    seed = "short" if short else os.environ.get("SESIONES_CHAOS_SEED", str(time.time_ns()))
    result = uvloop.run(compare(seed, SHORT_MESSAGES if short else MESSAGES))
    statuses = ", ".join(f"{count:,} {one}" for one, count in sorted(result.statuses.items()))
    taken = f"{result.taken['parsed']:,} fast and parsed, {result.taken['matched']:,} unparsed"
    yield Bar(
        f"the fast check answers {result.messages:,} messages, in pipelines, pieces and "
        "near-copies of one another, as Starlette does to the byte",
        result.differences[0] if result.differences else f"0 differ; {taken}; {statuses}",
        not result.differences,
    )
    yield Bar(
        "of these at least a tenth is a fast check, and half of that without the parser",
        taken,
        result.taken.total() > result.messages / 10
        and result.taken["matched"] > result.messages / 20,
    )


async def compare(seed: str, messages: int) -> Comparison:
    """The messages, at most ten differences of them."""
    result, store = Comparison(), Store()
    conversations = Conversations(seed, store)
    progress = Progress("compared", messages)
    _clear_templates()
    _CountingProtocol.taken.clear()
    async with application(store) as served:
        pairs = [_Pair(served, set(store.tokens)) for _ in range(PAIRS)]
        while result.messages < messages and len(result.differences) < 10:
            conversations.turn()
            before = result.messages
            await _round(pairs, conversations, result)
            if served.errors:
                result.differences.append(served.errors.pop(0))
            for number, pair in enumerate(pairs):
                if pair.ended:
                    if not pair.lost:
                        pair.lose()
                    pairs[number] = _Pair(served, set(store.tokens))
            for _ in range(result.messages - before):
                progress.step()
        for pair in pairs:
            pair.lose()
    progress.end()
    _clear_templates()
    result.taken = Counter(_CountingProtocol.taken)
    result.differences = [f"seed {seed}: {difference}" for difference in result.differences]
    return result


def _clear_templates() -> None:
    if FastCheckProtocol.templates is not None:
        FastCheckProtocol.templates.clear()


async def _round(pairs: list[_Pair], conversations: Conversations, result: Comparison) -> None:
    """A conversation over each pair, piece by piece, and what comes of it."""
    r = conversations.random
    waiting: list[tuple[_Pair, list[bytes]]] = []
    for pair in pairs:
        pieces, count = conversations.make()
        result.messages += count
        pair.sent.append(pieces)
        if pieces:  # damage can leave nothing
            waiting.append((pair, pieces))
    at = 0
    while waiting:
        for pair, pieces in waiting:
            for wire in pair.both:
                wire.send(pieces[at])
        at += 1
        # Where "100 Continue" is due depends on when the body comes.
        patient = any(b"xpect" in piece for _, pieces in waiting for piece in pieces)
        if patient or r.random() < SETTLED:
            await _settle(pairs)
        elif r.random() < 0.5:
            await asyncio.sleep(0)
        waiting = [(pair, pieces) for pair, pieces in waiting if at < len(pieces)]
    for pair in pairs:
        roll = r.random()
        if roll < LOST:
            _compare(pair, result, whole=False)
            pair.lose()
        elif roll < LOST + HALF_CLOSED and not FRAMED.search(b"".join(pair.sent[-1])):
            # A body that is cut short is a 400, unless its request was answered before that.
            pair.end()
    await _settle(pairs)
    for pair in pairs:
        if pair.within and not pair.lost:
            pair.end()
    await _settle(pairs)
    for pair in pairs:
        if pair.lost:
            continue
        if pair.owed:
            result.differences.append(f"no answer to {pair.sent[-MESSAGES_KEPT:]!r}")
        _compare(pair, result)


def _compare(pair: _Pair, result: Comparison, *, whole: bool = True) -> None:
    difference, statuses = pair.compare(whole=whole)
    result.statuses.update(statuses)
    if difference:
        result.differences.append(difference)


async def _settle(pairs: list[_Pair]) -> None:
    """Until all has been answered that can be."""
    begun = time.monotonic()
    while any(pair.owed and not pair.within for pair in pairs):
        if time.monotonic() - begun > HANG_SECONDS:
            break
        await asyncio.sleep(0)
    for _ in range(ROUND_TURNS):  # what a part of a message waits behind
        await asyncio.sleep(0)
