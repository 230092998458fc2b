"""The fast check: the auth check, answered straight from the parser's callbacks, or without the
parser where the bytes match a request template (templates.py) or a request pattern (patterns.py).

No scope, no task, no ASGI events: a plain `/sesiones/self` or `/sesiones/verificar` goes to the
store's batch, and its answer from the batch to the socket. Only the plainest request
is taken: HTTP/1.1, one well-formed token in one header, no body, nothing unfinished before it on
the connection, and no header that changes how the connection goes on. Everything else goes to
Starlette unchanged; what Starlette answers to the same bytes is the reference, and
tests/http/test_fast_check.py compares the two byte for byte.

Relies, beyond protocol.py, on what HttpToolsProtocol does with ``self.cycle``: it looks at
``response_complete`` to queue a request behind it, sets ``keep_alive`` to false at shutdown, and
``disconnected`` when the client leaves. A stand-in takes all three.
"""

import re
from collections.abc import Callable
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sesiones import paths
from sesiones.http import responses
from sesiones.http.heads import (
    BLANK_LINE,
    HEAD_MAX_BYTES,
    HEAD_MAX_FIELDS,
    HOST,
    asks_for_fresh,
)
from sesiones.http.patterns import VERIFY_TARGET, RequestPattern, RequestPatterns
from sesiones.http.problems import unauthorized, unavailable
from sesiones.http.protocol import HEAD, IDLE, HttpProtocol
from sesiones.http.repeats import Repeat, Repeats
from sesiones.http.templates import TOKEN, Kind, RequestTemplates
from sesiones.sesion import Sesion
from sesiones.store.near_cache import Entry

_BEARER_TOKEN = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] (%b)" % TOKEN.pattern)
_SELF_TARGET = paths.SELF.encode()

_ONLY_PLAIN_VALUE = {
    b"connection": b"keep-alive",
    b"content-length": b"0",
    b"expect": None,
    b"proxy-connection": b"keep-alive",  # the parser takes it for Connection
    b"transfer-encoding": None,
    b"upgrade": None,
}
"""A plain check may have these fields only with this value; with None, not at all."""

Check = Callable[[str, Callable[[Sesion | Exception | None], None]], None]
"""SessionStore.checker()"""


class _InFlightCheck:
    """Stands in for uvicorn's RequestResponseCycle while a check is in flight."""

    __slots__ = (
        "disconnected",
        "keep_alive",
        "kind",
        "message_event",
        "response_complete",
        "token",
    )

    def __init__(self) -> None:
        self.response_complete = True
        self.keep_alive = True
        self.disconnected = False
        self.message_event = self  # whose set() wakes an application that waits: none does
        self.token = b""
        self.kind: Kind = (False, False, False, True)

    def set(self) -> None:
        pass


class FastCheckProtocol(HttpProtocol):
    """One connection."""

    __slots__ = ("_answer_repeat", "_check", "_in_flight", "_pattern", "_repeats", "_successes")

    templates: ClassVar[RequestTemplates | None] = RequestTemplates()
    """Those of the process. None turns them and the patterns off: every request is parsed."""
    patterns: ClassVar[RequestPatterns] = RequestPatterns()

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # There is no fast check where uvicorn does more than answer.
        plain = not (self.access_log or self.root_path or self.limit_concurrency is not None)
        self._metrics = self._traffic.metrics
        self._successes = self._metrics.successes
        self._check: Check | None = app_state.get("check") if plain else None
        self._check_without_slide: Check | None = app_state.get("check_without_slide")
        self._repeats: Repeats | None = app_state.get("repeats") if plain else None
        self._answer_repeat = None if self._repeats is None else self._repeats.answerer()
        self._pattern: RequestPattern | None = None  # that the last request matched
        self._plain: tuple[bytes, Kind] | None = None  # the check whose head is complete
        self._fields: list[tuple[bytes, bytes]] = []
        self._in_flight: Any = _InFlightCheck()  # or the one that was in flight last

    def data_received(self, data: bytes) -> None:
        """Between two messages, take the data as a whole for a request that may be recognized;
        otherwise it goes to the parser."""
        cycle = self.cycle
        if (
            self._input is not IDLE
            or (cycle is not None and not cycle.response_complete)
            or self.flow.write_paused
        ):
            super().data_received(data)
            return
        match = None
        if self._pattern is not None:
            match = self._pattern.match(data) or self._match_pattern(data)
        answer = self._answer_repeat
        response = None if answer is None else answer(match or data)
        if response is not None:
            defaults = self.server_state.default_headers
            self.transport.write(responses.success_lines(defaults) + response)
            self._last_active = self.loop.time()
        elif match is None:
            self._recognize(data)
        else:
            if answer is not None:
                self._learn_template(data, *match)
            self._ask(*match, match)

    def _recognize(self, data: bytes) -> None:
        """Answer a check that matches a template or a pattern of the process; parse the rest."""
        if self._check is None or self.templates is None:
            super().data_received(data)
        elif match := self.templates.match(data):
            self._ask(*match, data)
        elif match := self._match_pattern(data):
            self._learn_template(data, *match)
            self._ask(*match, match)
        else:
            self._parse_and_learn(data)

    def _match_pattern(self, data: bytes) -> tuple[bytes, Kind] | None:
        """The token and the kind of the check that the data is, if it matches a pattern of the
        process, which becomes that of the connection."""
        self._pattern, match = self.patterns.match(data) or (None, None)
        return match

    def _learn_template(self, data: bytes, token: bytes, kind: Kind) -> None:
        """Learn from a check that matched a pattern. If there is a template of it now, answers from
        memory are found by the bytes of the whole request, and the pattern is in the way."""
        assert self.templates is not None
        if self.templates.learn(data, token, kind):
            self._pattern = None

    def _parse_and_learn(self, data: bytes) -> None:
        newest = self._in_flight
        newest.token = b""
        super().data_received(data)
        # The data is one plain check and nothing else when there was one in it, and its first blank
        # line ends it. Several checks may have been answered from memory by now.
        if newest.token and data.find(BLANK_LINE) == len(data) - len(BLANK_LINE):
            assert self.templates is not None
            self.templates.learn(data, newest.token, newest.kind)
            self.patterns.learn(data, newest.token, newest.kind)

    def shutdown(self) -> None:
        self._in_flight.keep_alive = False  # it is not the cycle when Starlette has answered last
        self._answer_repeat = None
        super().shutdown()

    def on_message_begin(self) -> None:
        self.url = b""
        self._fields = []
        self._begin_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._input is HEAD:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._check is not None and (plain := self._plain_check()):
            self._begin_body(0)
            self._plain = plain
            return
        # Starlette's: uvicorn sees the callbacks that it missed.
        url = self.url
        HttpToolsProtocol.on_message_begin(self)
        self.url = url
        for name, value in self._fields:
            super().on_header(name, value)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        plain, self._plain = self._plain, None
        if plain is None:
            super().on_message_complete()
            return
        self._input = IDLE
        if self._deadline is not None:
            self._stop_deadline()
        self._ask(*plain)

    def _ask(self, token: bytes, kind: Kind, repeat: Repeat | None = None) -> None:
        """``repeat``: what the same request will be known by next time; None if it was parsed."""
        in_flight = self._in_flight
        in_flight.token = token
        in_flight.kind = kind
        in_flight.response_complete = False
        self.cycle = in_flight
        if (repeats := self._repeats) is not None and not kind[2]:
            entry = repeats.cache.get(token.decode())
            if entry is not None:
                self._answer_from(entry, repeat)
                return
        check = self._check if kind[3] else self._check_without_slide or self._check
        assert check is not None
        check(token.decode(), self._answer)

    def _answer_from(self, entry: Entry, repeat: Repeat | None) -> None:
        """Answer with what the near-cache has, at once: the bytes that _answer() would send."""
        in_flight = self._in_flight
        if not in_flight.keep_alive or self._half_closed or self.flow.read_paused:
            # More is to be done than to answer, outside the parser's callback.
            self._metrics.found_in_memory()
            self.loop.call_soon(self._answer, entry.sesion)
            return
        kind, response = entry.response
        if kind != in_flight.kind:
            verify, is_head_method, _, _ = in_flight.kind
            response = responses.behind_defaults(
                responses.check_succeeded(entry.sesion, verify, is_head_method=is_head_method)
            )
            entry.response = in_flight.kind, response
        assert self._repeats is not None
        if repeat is not None:
            self._repeats.keep(repeat, entry, response)
        in_flight.response_complete = True
        self._repeats.responses[0] += 1
        self.transport.write(responses.success_lines(self.server_state.default_headers) + response)
        self._last_active = self.loop.time()

    def _plain_check(self) -> tuple[bytes, Kind] | None:
        """The token and the kind of the request whose head is complete, when it is a plain check;
        otherwise None. Another check may still be in flight, so this changes nothing."""
        verify = False
        if self.url != _SELF_TARGET:
            verify = True
            if not VERIFY_TARGET.fullmatch(self.url):
                return None
        method = self.parser.get_method()
        if method == b"CONNECT" or not (verify or method == b"GET" or method == b"HEAD"):
            return None
        token = host = None
        fresh, slide = False, True
        for name, value in self._fields:
            name = name.lower()
            if name == b"x-auth-token":
                match = TOKEN.fullmatch(value)
                if match is None or token is not None:
                    return None
                token = match[0]
            elif name == b"host":
                if host is not None or not HOST.fullmatch(value):
                    return None
                host = value
            elif name == b"authorization":
                match = _BEARER_TOKEN.fullmatch(value)
                if match is None or token is not None:
                    return None
                token = match[1]
            elif name == b"cache-control":
                fresh = fresh or asks_for_fresh([(name, value)])
            elif name == b"x-sin-deslizar":
                slide = slide and value.strip(b" \t") != b"1"
            elif name in _ONLY_PLAIN_VALUE and value.lower() != _ONLY_PLAIN_VALUE[name]:
                return None
        if (
            token is None
            or host is None
            or len(self._fields) > HEAD_MAX_FIELDS
            or len(self._head) > HEAD_MAX_BYTES
            or self._is_answering()
            or self.flow.write_paused  # the client reads slower than it asks
            or not self._head.endswith(b" HTTP/1.1", 0, self._head.find(b"\r\n"))
        ):
            return None
        return token, (verify, method == b"HEAD", fresh, slide)

    def _answer(self, answer: Sesion | Exception | None) -> None:
        """What the store says of the token: the bytes that Starlette would send."""
        in_flight = self._in_flight
        in_flight.response_complete = True
        if self.transport.is_closing():
            return
        verify, is_head_method, _, _ = in_flight.kind
        close = b"" if in_flight.keep_alive else responses.CLOSE
        if isinstance(answer, Sesion):
            self._successes[0] += 1
            defaults = responses.default_lines(self.server_state.default_headers)
            self.transport.write(
                responses.check_succeeded(
                    answer, verify, defaults, close, is_head_method=is_head_method
                )
            )
        else:
            problem = unauthorized(presented=True) if answer is None else unavailable()
            self._metrics.responded(problem.status)
            self._write(problem.response(), close, with_body=not is_head_method)
        self._last_active = self.loop.time()
        if not in_flight.keep_alive:
            self.transport.close()
        if self.pipeline or self.flow.read_paused or self._half_closed or self._pending_error:
            self.on_response_complete()
