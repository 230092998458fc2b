"""Whether the fast check answers what Starlette answers, byte for byte: two connections in process,
one with the fast check and one without, get the same bytes at the same time.

The inputs are made to confuse the fast check: pipelines, splits at any byte, clients that leave or
shut their side, and near-copies of requests of which it has templates, so that a message is taken
for another one wherever that is possible. The oracle judges the answers too.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar
from unittest.mock import patch

import uvloop

from scripts.chaos import Bar, resident
from scripts.chaos.inputs import CHUNKS, Chunk, chaos_seed, in_processes, statuses
from sesiones.http.fast_check import FastCheckProtocol
from sesiones.http.protocol import HttpProtocol
from sesiones.http.repeats import Repeat
from sesiones.http.templates import Kind
from sesiones.store.near_cache import Entry
from tests.harness.fuzzer import Findings, fuzz_in_process
from tests.harness.in_process import NEW_ID, Application, Wire
from tests.harness.mutations import Mutations
from tests.harness.oracle import Violation

INPUTS, SHORT_INPUTS = 1_000_000, 4_000
NEW_MESSAGE = 1 / 64
"""The share of inputs at which another message becomes the one that is made a template."""
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
VARYING = re.compile(rb"(?<=[:=] )[^:%\r\n]*(?=\r\n)|(?<=verificar)/[^ ]*|(?<=a=)b")
VALUES = [b"", b"h", b"x" * 300, b"/ses_?", b"\xff", b"\t", b"a b", b"close", b"\x7f", b"[::1]:80"]
LINES = [b" RTSP/1.1\r\n", b" RTSP/1.0\r\n", b" HTTP/1.0\r\n", b" HTTP/1.2\r\n", b"  HTTP/1.1\r\n"]


class NearCopies(Mutations):
    """One check again and again, near-copies of it, and other requests between them."""

    _head = b""

    def make(self) -> list[bytes]:
        r = self.random
        if not self._head or r.random() < NEW_MESSAGE:
            self._head = r.choice(HEADS) % r.choice(CREDENTIALS)
        if r.random() < 0.4:
            return [self._remembered()]
        data = b"".join([self._any_message() for _ in range(r.choice((1, 1, 1, 2, 3, 5)))])
        if r.random() < 0.05:
            data = self.damage(data)
        return (self.pieces(data) if r.random() < 0.4 else [data]) or [b"\r\n"]

    def _any_message(self) -> bytes:
        roll = self.random.random()
        if roll < 0.4:
            return self._remembered()
        return self._near_copy() if roll < 0.8 else self.message()

    def _remembered(self) -> bytes:
        head = self._head
        if self.random.random() < 0.5:
            head = VARYING.sub(lambda _: self.random.choice(VALUES), head)
        return head % self._any_token()

    def _any_token(self) -> bytes:
        return self.random.choice([*self.tokens, *self.tokens[4:]])

    def _near_copy(self) -> bytes:
        r = self.random
        head, token = self._head.replace(b"%b", b"@"), self._any_token()
        at = r.randrange(len(head) + 1)
        match r.randrange(5):
            case 0:  # the token, or a second one, in another place
                moved = head if r.random() < 0.5 else head.replace(b"@", b"")
                return (moved[:at] + token + moved[at:]).replace(b"@", self._any_token())
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


class CountedFastCheck(FastCheckProtocol):
    """Counts the checks that the fast check answers, with and without the parser; those of them
    that it answers from memory; and the answers to bytes that had the same answer before."""

    taken: ClassVar[Counter[str]] = Counter()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if self._answer_repeat is not None:
            self._answer_repeat = self._counted_repeat

    def _ask(self, token: bytes, kind: Kind, repeat: Repeat | None = None) -> None:
        by = {type(None): "parsed", bytes: "by template", tuple: "by pattern"}
        self.taken[by[type(repeat)]] += 1
        super()._ask(token, kind, repeat)

    def _answer_from(self, entry: Entry, repeat: Repeat | None) -> None:
        self.taken["from memory"] += 1
        super()._answer_from(entry, repeat)

    def _counted_repeat(self, request: Repeat) -> bytes | None:
        assert self._repeats is not None
        response = self._repeats.answerer()(request)
        self.taken["again"] += response is not None
        return response


class Pair(Wire):
    """Two connections that get the same bytes. Without the fast check, the second is the
    reference."""

    _new_token = re.compile(rb'("ID_Sesion":%d,"ID_Usuario":\d+,"Token_Sesion":)"[^"]*"' % NEW_ID)

    def __init__(self, application: Application) -> None:
        super().__init__(application, CountedFastCheck)
        self.reference = Wire(application, HttpProtocol)

    def send(self, piece: bytes) -> None:
        super().send(piece)
        self.reference.send(piece)

    def take(self, *, whole: bool = True) -> bytes:
        taken = super().take()
        found, expected = (
            self._new_token.sub(rb"\1", answers) for answers in (taken, self.reference.take())
        )
        # A client that left may have got more answers on one of the connections.
        begins = not whole and (found.startswith(expected) or expected.startswith(found))
        if found != expected and not begins and not self._answered_sooner(found, expected):
            raise Violation(f"{found!r} is not {expected!r}")
        if whole and self.transport.ended != self.reference.ended:
            raise Violation("only one has closed")
        return taken

    def _answered_sooner(self, found: bytes, expected: bytes) -> bool:
        """Whether they may differ because a check was answered from memory: the request behind it
        then begins sooner, and may be answered before its body turns out to be malformed."""
        before, malformed, _ = expected.rpartition(b"HTTP/1.1 400 ")
        cached = self.protocol._repeats is not None  # type: ignore[attr-defined]
        return cached and b" 200 " in before and malformed != b"" and found.startswith(before)

    @property
    def within(self) -> bool:
        return super().within or self.reference.within

    @property
    def owed(self) -> bool:
        return super().owed or self.reference.owed

    @property
    def ended(self) -> bool:
        return super().ended or self.reference.ended

    def end(self) -> None:
        super().end()
        self.reference.end()

    def lose(self) -> None:
        super().lose()
        self.reference.lose()


def play(short: bool) -> Iterator[Bar]:
    inputs, chunks = (SHORT_INPUTS, 1) if short else (INPUTS, CHUNKS)
    found, _ = in_processes(_chunk, chaos_seed(short), inputs, chunks)
    taken = found.counted
    ways = "parsed", "by template", "by pattern"
    parsed, templates, patterns = (taken[way] for way in ways)
    parts = (
        f"{parsed:,} by the fast check with the parser, {templates:,} by a template and "
        f"{patterns:,} by a pattern; {taken['from memory']:,} of them from memory, and "
        f"{taken['again']:,} as the same request was answered before"
    )
    yield Bar(
        f"the fast check answers {found.inputs:,} inputs, with pipelines, pieces and near-copies "
        "of one another, as Starlette does to the byte",
        found.violations[0] if found.violations else f"0 differ; {parts}; {statuses(found)}",
        not found.violations,
    )
    answers = found.statuses.total()
    yield Bar(
        "of the answers at least a tenth is the fast check's, and half of that without the parser, "
        "by templates and by patterns; a near-cache gives some of them",
        parts,
        parsed + templates + patterns > answers / 10
        and templates + patterns > answers / 20
        and min(templates, patterns) > answers / 100
        and min(taken["from memory"], taken["again"]) > 0,
    )


def _chunk(seed: str, inputs: int) -> Chunk:
    found = compare(seed, inputs // 2)
    found.add(compare(seed, inputs - inputs // 2, cached=True))
    return found, os.getpid(), resident(os.getpid())


def compare(seed: str, inputs: int, *, cached: bool = False) -> Findings:
    """What came of the inputs, and how many checks the fast check answered. ``cached``: with a
    near-cache."""
    CountedFastCheck.taken = Counter()
    _forget()
    fuzz = fuzz_in_process(seed, inputs, connect=Pair, make=NearCopies, cached=cached)
    with patch("sesiones.http.patterns.LEARN_SECONDS", 0):
        found = uvloop.run(fuzz)
    _forget()
    found.counted = CountedFastCheck.taken
    return found


def _forget() -> None:
    if FastCheckProtocol.templates is not None:
        FastCheckProtocol.templates.clear()
    FastCheckProtocol.patterns.clear()
