"""Request patterns: plain checks whose heads differ in more than the token, recognized by a regular
expression instead of the HTTP parser.

A gateway that passes its client's fields on sends another head with almost every check: a request
ID, a cookie, a user agent. Such heads still have the same lines in the same order. A pattern is
made of one of them, as a regular expression of the whole request, and saves a fifth of the cost of
a check.

A wrong match would let a request through that the parser refuses, or take it for another check.
These invariants exclude it; each has its test in tests/http/test_patterns.py:

1. A pattern is made only of bytes that the parser took for exactly one plain check (see
   fast_check.py), with nothing behind it, and it must match them with the same token.
2. It has every byte of them, but for four parts: the token; the host; what follows
   ``/sesiones/verificar``; and the values of fields at which neither the parser nor the fast check
   looks. ``_LITERAL`` are the fields at which one of them does, and their values stay as they were.
3. Each of the four parts matches only what the parser and the fast check accept in its place: the
   same expressions, and in a value no control character but the tab. So no part reaches beyond its
   line, and a match has the same fields as the request that the pattern was made of.
4. What matches is no longer than a head may be.
5. As with a template, a request is compared only between two messages.

Any client can have patterns made, because they are made before the token turns out to be valid.
Three bounds keep small what that costs other clients:

- One pattern is made in ``LEARN_SECONDS`` at most, because compiling it takes up to 3 ms.
- A request is compared only with the ``MAX_OF_A_LENGTH`` patterns of its number of lines, in one
  pass each: every repeat is possessive, so nothing is tried twice.
- Of these makes room the oldest that was not used since the last one was made, so that patterns in
  use stay. A head has a hundred fields at most, and an expression ``EXPRESSION_MAX_BYTES``, which
  bounds the memory: a pattern of a usual head takes 7 KB, and all that clients could have made
  25 MB, with what re.compile() keeps.

Checks that arrive on one connection mostly come from one gateway. So a connection remembers the
pattern that its last check matched, and compares the next one with it and then with the others
before anything else is tried (fast_check.py). A pattern that has made room stays with a connection
that remembers it, and takes 20 KB there at most: less than a head that has come in part may take.
"""

import re
import time

from sesiones import paths
from sesiones.http.heads import HEAD_MAX_BYTES, HOST
from sesiones.http.templates import TOKEN, Kind

LEARN_SECONDS = 1.0
MAX_OF_A_LENGTH = 8
EXPRESSION_MAX_BYTES = 2048

VERIFY_TARGET = re.compile(paths.VERIFY.encode() + rb"(?:[/?][!\"$-~]*+)?")  # no "#", no space

_LITERAL = {
    *(b"cache-control", b"connection", b"content-length", b"expect", b"proxy-connection"),
    *(b"transfer-encoding", b"upgrade", b"x-sin-deslizar"),
}
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t -~\x80-\xff]*)")
_ANY_VALUE = rb"[\t -~\x80-\xff]*+"


class RequestPattern:
    """One pattern."""

    __slots__ = ("_fullmatch", "is_used", "kind")

    def __init__(self, expression: bytes, kind: Kind) -> None:
        self._fullmatch = re.compile(expression).fullmatch
        self.kind = kind
        self.is_used = False
        """Since the last pattern of its number of lines was made."""

    def match(self, data: bytes) -> tuple[bytes, Kind] | None:
        """The token and the kind of the check that the data is, if it matches."""
        found = self._fullmatch(data) if len(data) <= HEAD_MAX_BYTES else None
        if found is None:
            return None
        self.is_used = True
        return found[1], self.kind


class RequestPatterns:
    """The patterns of a process."""

    def __init__(self) -> None:
        self._of_length: dict[int, list[RequestPattern]] = {}  # the newest first
        self._may_learn_at = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._of_length.values()))

    def match(self, data: bytes) -> tuple[RequestPattern, tuple[bytes, Kind]] | None:
        """The pattern that the data matches, and its match, if there is one."""
        for pattern in self._of_length.get(data.count(b"\n"), ()):
            if match := pattern.match(data):
                return pattern, match
        return None

    def learn(self, data: bytes, token: bytes, kind: Kind) -> None:
        """Make a pattern of data that the parser took for one plain check of the token, and nothing
        else, if it is time for another one."""
        now = time.monotonic()
        if now < self._may_learn_at:
            return
        self._may_learn_at = now + LEARN_SECONDS  # a failure takes time too
        expression = _expression(data, token)
        if expression is None or len(expression) > EXPRESSION_MAX_BYTES:
            return
        pattern = RequestPattern(expression, kind)
        if pattern.match(data) != (token, kind):
            return
        patterns = self._of_length.setdefault(data.count(b"\n"), [])
        if len(patterns) == MAX_OF_A_LENGTH:
            unused = [one for one in patterns if not one.is_used]
            patterns.remove((unused or patterns)[-1])
        patterns.insert(0, pattern)
        for one in patterns:
            one.is_used = False

    def clear(self) -> None:
        self._of_length.clear()
        self._may_learn_at = 0.0


def _expression(data: bytes, token: bytes) -> bytes | None:
    """The pattern of a plain check; None if it is not written as usual."""
    request_line, *lines = data.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, _, target = request_line.removesuffix(b" HTTP/1.1").partition(b" ")
    verify = VERIFY_TARGET.fullmatch(target)
    target = VERIFY_TARGET.pattern if verify else re.escape(target)
    parts = [b"%b %b HTTP/1\\.1" % (re.escape(method), target)]
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            return None
        name = field[1].lower()
        if name in (b"x-auth-token", b"authorization"):
            before, _, behind = line.partition(token)
            parts.append(b"%b(%b)%b" % (re.escape(before), TOKEN.pattern, re.escape(behind)))
        elif name == b"host":
            parts.append(b"%b:[\\t ]*+(?:%b)" % (re.escape(field[1]), HOST.pattern))
        elif name in _LITERAL:
            parts.append(re.escape(line))
        else:
            parts.append(b"%b:%b" % (re.escape(field[1]), _ANY_VALUE))
    return b"\r\n".join([*parts, b"\r\n"])
