"""Request templates: plain checks that are recognized by their bytes, without the HTTP parser.

The checks of a gateway differ in nothing but the token. A template is what stands before and
behind the token of such a request, and with it the kind of the check, as the parser found it. That
saves a tenth of the cost of a check, or a fifth where the head is long.

A wrong match would let a request through that the parser refuses. These invariants exclude it; each
has its test in tests/http/test_templates.py:

1. A template is learned only from bytes that the parser took for exactly one plain check (see
   fast_check.py), with nothing behind it, and only when two such requests in a row differ in
   nothing but the token.
2. It is learned only where ``ses_`` occurs once in the bytes. So the token that was checked is what
   stands between the two parts, and no other field holds a token.
3. A request matches only if all of its bytes before and behind the first ``ses_`` and the 45 bytes
   that follow are those of the template, and these 49 bytes are a well-formed token. The parser
   treats every well-formed token alike, so its result would be the same as for the template.
4. A request is compared only while its connection is between two messages: no request is in
   flight, none is queued, no byte of one has come, and nothing is being refused. The caller of
   match() checks that.
5. A template holds no token, has at most ``MAX_BYTES``, and there are at most ``MAX_TEMPLATES``.
"""

import re

from sesiones import tokens

MAX_TEMPLATES = 1024
MAX_BYTES = 2048

TOKEN = re.compile(tokens.PATTERN.encode())

_Around = tuple[bytes, bytes]


Kind = tuple[bool, bool, bool, bool]
"""Which check a request is: whether it is of ``verificar``; whether its method is HEAD; whether
Redis must be asked (``Cache-Control: no-cache``); and whether it is a use of the session. A plain
tuple, because a named one makes each check of the parser dearer."""


class RequestTemplates:
    """The templates that a process has learned."""

    def __init__(self) -> None:
        self._kinds: dict[_Around, Kind] = {}
        self._candidate: _Around = (b"", b"")

    def __len__(self) -> int:
        return len(self._kinds)

    def match(self, data: bytes) -> tuple[bytes, Kind] | None:
        """The token and the kind of the check that the data is, if it matches a template."""
        start = data.find(b"ses_")
        end = start + tokens.LENGTH
        kind = self._kinds.get((data[:start], data[end:]))
        if kind is None or not TOKEN.fullmatch(token := data[start:end]):
            return None
        return token, kind

    def learn(self, data: bytes, token: bytes, kind: Kind) -> bool:
        """Learn from data that is one plain check of the token, and nothing else. Return whether
        there is a template of it now."""
        before, _, behind = data.partition(token)
        around = before, behind
        if around in self._kinds:
            return True
        again, self._candidate = around == self._candidate, around
        if not again or data.count(b"ses_") != 1 or len(data) > MAX_BYTES:
            return False
        if len(self._kinds) >= MAX_TEMPLATES:
            self._kinds.clear()
        self._kinds[around] = kind
        return True

    def clear(self) -> None:
        self._kinds.clear()
        self._candidate = (b"", b"")
