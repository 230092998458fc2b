"""The fast lane: the auth check, answered straight from the parser's callbacks.

No scope, no task, no ASGI events: a plain `/sesiones/self` or `/sesiones/verificar` goes from the
parser to the store's batch, and its answer from the batch to the socket. Only the plainest request
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

from sesiones import tokens
from sesiones.http.heads import HOST
from sesiones.http.problems import unauthorized, unavailable
from sesiones.http.protocol import HEAD_MAX_BYTES, HEAD_MAX_FIELDS, HttpProtocol
from sesiones.sesion import Sesion

_TOKEN = re.compile(rb"ses_[A-Za-z0-9_-]{45}")
_BEARER_TOKEN = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] (ses_[A-Za-z0-9_-]{45})")
_VERIFY_TARGET = re.compile(rb"/sesiones/verificar(?:[/?][!\"$-~]*)?")  # no "#", no space

_HARMLESS = {
    b"connection": b"keep-alive",
    b"content-length": b"0",
    b"expect": None,
    b"proxy-connection": b"keep-alive",  # the parser takes it for Connection
    b"transfer-encoding": None,
    b"upgrade": None,
}
"""Fields that make a request more than plain, and the one value that does not."""

_HEAD = (
    b"HTTP/1.1 200 OK\r\n%bcache-control: no-store\r\n"
    b"x-id-usuario: %d\r\nx-id-sesion: %d\r\nx-fecha-expiracion: %d\r\n"
)
_VERIFIED = _HEAD + b"content-length: 0\r\n%b\r\n"
_SELF = _HEAD + b"content-length: %d\r\ncontent-type: application/json\r\n%b\r\n%b"


KNOWN_MAX = 1024
KNOWN_MAX_BYTES = 2048
"""Messages to remember, and of what length."""

Check = Callable[[str, Callable[[Sesion | Exception | None], None]], None]
"""SessionStore.checker()"""


class _Turn:
    """Stands in for uvicorn's RequestResponseCycle while a check is out."""

    __slots__ = ("disconnected", "keep_alive", "message_event", "response_complete")

    def __init__(self) -> None:
        self.response_complete = True
        self.keep_alive = True
        self.disconnected = False
        self.message_event = self  # whose set() wakes an application that waits: none does

    def set(self) -> None:
        pass


class FastLane(HttpProtocol):
    """One connection.

    The checks of many gateways differ in nothing but the token. So a message that was found to be
    a plain check and nothing else, twice in a row, is remembered as what stands before and behind
    its token: the next one like it is one too, and needs no parser. That saves a tenth of the
    cost, or a fifth where the head is long.
    """

    _known: ClassVar[dict[tuple[bytes, bytes], tuple[bool, bool]]] = {}
    """To whether it is of verificar, and whether it is a HEAD."""
    _newest: ClassVar[list[tuple[bytes, bytes]]] = [(b"", b"")]

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # Not where Starlette would do more than answer: write an access log, for one.
        plain = not (self.access_log or self.root_path or self.limit_concurrency is not None)
        self._check: Check | None = app_state.get("check") if plain else None
        self._fields: list[tuple[bytes, bytes]] = []
        self._turn: Any = _Turn()
        self._verify = self._head = False  # the check that is out is of verificar; is a HEAD
        self._asked = b""  # the token of the newest check

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        if (
            (check := self._check) is None
            or self._deadline is not None  # a message has come in part
            or (cycle is not None and not cycle.response_complete)
            or self._deaf
            or self.flow.write_paused
        ):
            super().data_received(data)
            return
        at = data.find(b"ses_")
        end = at + tokens.LENGTH
        around = data[:at], data[end:]
        known = self._known.get(around)
        if known is not None and _TOKEN.fullmatch(token := data[at:end]):
            self._verify, self._head = known
            self._ask(check, token)
            return
        self._asked = b""
        super().data_received(data)
        if self._asked and len(data) <= KNOWN_MAX_BYTES:
            if (
                around == self._newest[0]
                and self._asked == data[at:end]
                and data.count(b"ses_") == 1  # else it might be another field's
                and self.cycle is self._turn  # nothing behind it: no message, no part of one, no
                and self._deadline is None  # nonsense
                and not self._deaf
            ):
                if len(self._known) >= KNOWN_MAX:
                    self._known.clear()
                self._known[around] = self._verify, self._head
            self._newest[0] = around

    def shutdown(self) -> None:
        self._turn.keep_alive = False  # it is not the cycle when Starlette has answered last
        super().shutdown()

    def on_message_begin(self) -> None:
        self.url = b""
        self._fields = []
        self._begin_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if (check := self._check) is not None and (token := self._plain_token()):
            self._in_head, self._in_body = False, True
            self._ask(check, token)
            return
        # Starlette's: uvicorn sees the callbacks that it missed.
        url = self.url
        HttpToolsProtocol.on_message_begin(self)
        self.url = url
        for name, value in self._fields:
            super().on_header(name, value)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self.cycle is self._turn and not self._in_head:
            self._in_body = self._from_start = False
            if self._deadline is not None:
                self._stop_deadline()
        else:
            super().on_message_complete()

    def _ask(self, check: Check, token: bytes) -> None:
        self._asked = token
        self._turn.response_complete = False
        self.cycle = self._turn
        check(token.decode(), self._answer)

    def _plain_token(self) -> bytes | None:
        """The token, when the request whose head is complete is the plainest check.

        Until it is known to be, another one may be out: nothing of that one's is touched.
        """
        verify = False
        if self.url != b"/sesiones/self":
            verify = True
            if not _VERIFY_TARGET.fullmatch(self.url):
                return None
        method = self.parser.get_method()
        if method == b"CONNECT" or not (verify or method == b"GET" or method == b"HEAD"):
            return None
        token = host = None
        for name, value in self._fields:
            name = name.lower()
            if name == b"x-auth-token":
                match = _TOKEN.fullmatch(value)
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
            elif name in _HARMLESS and value.lower() != _HARMLESS[name]:
                return None
        if (
            token is None
            or host is None
            or len(self._fields) > HEAD_MAX_FIELDS
            or self._head_bytes + len(self._chunk) > HEAD_MAX_BYTES  # as in _head_too_long()
            or self._owes()
            or self.flow.write_paused  # the client reads slower than it asks
            or self.parser.get_http_version() != "1.1"
        ):
            return None
        self._verify, self._head = verify, method == b"HEAD"
        return token

    def _answer(self, answer: Sesion | Exception | None) -> None:
        """What the store says of the token: the bytes that Starlette would send."""
        self._turn.response_complete = True
        if self.transport.is_closing():
            return
        close = b"" if self._turn.keep_alive else b"connection: close\r\n"
        if isinstance(answer, Sesion):
            head = (
                self._default_headers(),
                answer.ID_Usuario,
                answer.ID_Sesion,
                answer.Fecha_Expiracion,
            )
            if self._verify:
                data = _VERIFIED % (*head, close)
            else:
                body = answer.to_json()
                shown = b"" if self._head else body
                data = _SELF % (*head, len(body), close, shown)
            self.transport.write(data)
        else:
            problem = unauthorized(presented=True) if answer is None else unavailable()
            self._write(problem.response(), close=close, body=not self._head)
        self._last_active = self.loop.time()
        if not self._turn.keep_alive:
            self.transport.close()
        if self.pipeline or self.flow.read_paused or self._half_closed or self._parting:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
