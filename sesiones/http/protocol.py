"""uvicorn's HTTP/1.1 protocol, hardened: what it lacks between a client and the routes.

Malformed requests get the API's own 400; a head has at most 16 KiB and 100 fields (431); a request
arrives within 5 s (408); a connection that never says anything is closed like an idle one, and one
whose client hardly reads is cut; a client that shuts its sending side still gets its answers; a
request to upgrade is answered as if it had not asked; a version that is not HTTP/1.0 or HTTP/1.1 is
a 400, and a transfer coding other than chunked a 501; when the server stops, a connection ends with
an answer that says so. What a response says of its connection is in persistence.py.

Theory of operation
-------------------

**Input** is cut into pieces for the parser, and no piece has bytes of two messages: a piece ends
behind each blank line of a head or of a chunked body, and where a body of known length ends. So
every head begins where a piece begins and ends where one ends, and the pieces of a head are exactly
its bytes. What the parser does not tell is read from them: the size of the head, and whether its
request line names HTTP. A message that begins anywhere else is refused as malformed, so that a cut
in the wrong place could refuse a request but never let one through unseen. `Input` is the state:

========= ============================================ ============================================
state     event                                        next state
========= ============================================ ============================================
IDLE      a message begins                             HEAD
HEAD      the head ends, and asks for an upgrade       HEAD, read again without its Upgrade field
HEAD      the head ends                                BODY, and the request is answered or queued
BODY      the message ends (at once, without a body)   IDLE
HEAD      malformed, too large or too slow             DISCARD
BODY      the same, or the client shuts its side       DISCARD
BODY      the answer is complete, and closes           DISCARD
========= ============================================ ============================================

**Requests** are answered one after the other. uvicorn keeps the newest one whose head is complete
in ``cycle``, and those that wait for the ones before them in ``pipeline``. While one waits nothing
more is parsed: what is behind it stays as bytes (``_unread``), which take a hundredth of the memory
of parsed requests, and the connection is not read.

**An error of the input** is answered in its turn. If the request that it belongs to is being
answered or waits, that request's answer is the error. If it is a head behind requests that are not
answered yet, it waits for them as the ``_pending_error``. Then the service shuts its sending side,
and reads and ignores what still comes for half a second: closing on unread bytes would reset the
connection and lose the answer (RFC 9112, 9.6).

Relies on uvicorn 0.54's ``HttpToolsProtocol``: the parser's callbacks; ``cycle`` and ``pipeline``,
newest first; ``flow``, which pauses reading when a request begins to wait (flow.py); and
``timeout_keep_alive_task`` with ``_unset_keepalive_if_required()``.
"""

import asyncio
import select
from collections.abc import Callable
from enum import Enum
from typing import Any

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sesiones.http import heads, responses
from sesiones.http.flow import Flow
from sesiones.http.heads import HEAD_MAX_BYTES, MALFORMED, TOO_LARGE
from sesiones.http.persistence import persistent
from sesiones.http.problems import Problem
from sesiones.http.requests import BODY_MAX_BYTES
from sesiones.http.sockets import SEND_SECONDS
from sesiones.http.traffic import Traffic
from sesiones.tasks import ReadFirstTimer

FRAMING_MAX_BYTES = 128 * 1024
"""Of a chunked body, beside its content: 16 KiB in chunks of one byte take 96 KiB."""
RECEIVE_SECONDS = 5.0
DRAIN_SECONDS = 1
"""How long a connection may be idle once the server stops: a request may be on its way."""
LINGER_SECONDS = 0.5
"""How long a refused client may take to stop sending."""

TOO_SLOW = Problem(408, f"La petición no llegó entera en {RECEIVE_SECONDS:.0f} s.")


class Input(Enum):
    """What the next byte of a connection belongs to."""

    IDLE = "no message: the next byte begins one"
    HEAD = "a head"
    BODY = "a body, or what is left of one whose request has been answered"
    DISCARD = "nothing: an error is sent or pending, or the connection ends"


IDLE, HEAD, BODY, DISCARD = Input


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    # Each check reads these: the dictionary of uvicorn's many attributes is slower.
    __slots__ = ("_input", "_last_active", "cycle", "flow", "loop", "server_state", "transport")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._traffic: Traffic = self.app_state["traffic"]
        self._input = IDLE
        self._head = b""  # what has come of the head, as it came
        self._tail = b""  # the last bytes of the piece before: a blank line may begin in them
        self._body_left: int | None = 0  # bytes of the body that have not come; None: chunked
        self._framing_bytes = 0  # of the body: chunk sizes, extensions and trailers
        self._unread = b""  # behind the requests that wait
        self._running: RequestResponseCycle | None = None
        self._pending_error: Problem | None = None
        self._half_closed = False  # by the client: it still reads
        self._stopping = False  # the server: the next answer is the last one
        self._deadline: ReadFirstTimer | None = None
        self._last_active = 0.0  # in the loop's time

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._traffic.connected()
        self.flow = Flow(transport, self.pipeline)
        self._last_active = self.loop.time()
        self._watch_keep_alive(self.timeout_keep_alive)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, persistent(cycle, app, self.close_response))

    def connection_lost(self, exc: Exception | None) -> None:
        self._traffic.disconnected()
        if self._running is not None:  # uvicorn tells only the newest
            self._running.disconnected = True
            self._running.message_event.set()
        self._stop_deadline()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        self._half_closed = True
        if self._input is BODY:
            self._refuse(MALFORMED)  # the body was cut short
        return self._is_answering() and not self.cycle.disconnected  # else close

    # Input: pieces, and the parser's callbacks

    def data_received(self, data: bytes) -> None:
        self._read(self._unread + data)

    def _read(self, data: bytes) -> None:
        """Parse the data, up to where a request waits."""
        start = 0
        while start < len(data) and not self.pipeline and self._input is not DISCARD:
            end = self._piece_end(data, start)
            self._parse(data[start:end])
            start = end
        self._unread = b"" if self._input is DISCARD else data[start:]

    def _piece_end(self, data: bytes, start: int) -> int:
        limit = len(data)
        if self._input is not BODY:
            # One byte more than a head may have is enough to refuse it.
            limit = min(limit, start + HEAD_MAX_BYTES + 1 - len(self._head))
        elif self._body_left is not None:
            return min(limit, start + max(1, self._body_left))
        if self._tail:
            across = (self._tail + data[start : start + 3]).find(heads.BLANK_LINE)
            if across >= 0:
                return start + across + len(heads.BLANK_LINE) - len(self._tail)
        found = data.find(heads.BLANK_LINE, start, limit)
        return limit if found < 0 else found + len(heads.BLANK_LINE)

    def _parse(self, piece: bytes) -> None:
        if self._input is BODY:
            self._framing_bytes += len(piece)
        else:
            # Blank lines before a request line are not of the head (RFC 9112, 2.2).
            self._head = (self._head + piece).lstrip(b"\r\n")
        try:
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade:  # behind the head, where the piece ends
                if self._input is not DISCARD:
                    self._parse_without_upgrade()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if isinstance(error, httptools.HttpParserInvalidURLError):
                self.url = b"?"  # so that _send_error() knows that the method was read
            self._refuse(MALFORMED)
        if self._input is IDLE:
            # The piece ends a message; or the parser ignores it behind one that closes.
            self._head = self._tail = b""
            return
        if self._input is HEAD and not heads.names_http(self._head):
            self._refuse(MALFORMED)
        elif len(self._head) > HEAD_MAX_BYTES or self._framing_bytes > FRAMING_MAX_BYTES:
            self._refuse(TOO_LARGE)
        elif self._input is not DISCARD:
            self._tail = (self._tail + piece)[-3:]
            if self._deadline is None:
                self._deadline = self._timer(RECEIVE_SECONDS, self._too_slow)

    def _parse_without_upgrade(self) -> None:
        version = self.parser.get_http_version().encode()
        head = heads.without_upgrade(self.parser.get_method(), self.url, version, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.parser.feed_data(head)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head()

    def _begin_head(self) -> None:
        if not self._head:
            raise ValueError("the message does not begin where a piece begins")
        self._input = HEAD

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._input is HEAD:  # else a trailer: no gateway has seen it
            super().on_header(name, value.strip(b" \t"))  # RFC 9110, 5.5

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        problem = heads.problem(self._head, self.parser.get_method(), version, self.headers)
        if problem is not None:
            self._refuse(problem)
            return
        if self.parser.should_upgrade():
            return  # the parser stops here
        # RFC 9110, 10.1.1: the field is a list, and HTTP/1.0 does not have it.
        expected = heads.options(self.headers, b"expect")
        self.expect_100_continue = version == "1.1" and b"100-continue" in expected
        super().on_headers_complete()
        if version == "1.0":  # RFC 9112, 9.3
            options = heads.options(self.headers, b"connection")
            self.cycle.keep_alive = b"keep-alive" in options and b"close" not in options
        if self._stopping:
            self.cycle.keep_alive = False
        self._begin_body(heads.body_bytes(self.headers))

    def _begin_body(self, length: int | None) -> None:
        self._input = BODY
        self._head = b""
        self._body_left = length

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body)
        if self._body_left is not None:
            self._body_left -= len(body)
        if len(self.cycle.body) + len(body) <= BODY_MAX_BYTES and not self.cycle.response_complete:
            self.cycle.body += body  # no endpoint is woken for a part that it can do nothing with
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._input is BODY:  # else refused at its head, or read again without an upgrade
            self._input = IDLE
            self._framing_bytes = 0
            self._stop_deadline()
            super().on_message_complete()

    # Output: what follows a response, and errors of the input

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._unread:
            self._read(self._unread)
        self.flow.resume_reading()
        if not self._is_answering():
            if self._pending_error is not None:
                self._send_error(self._pending_error)
            elif self._half_closed:
                self.transport.close()

    def _is_answering(self) -> bool:
        """Whether a request whose head is complete has not been answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, problem: Problem) -> None:
        """Answer the request that is being received with an error, in its turn, and close."""
        if self._input is DISCARD:
            return
        in_body = self._input is BODY
        self._input = DISCARD
        self._stop_deadline()
        if not self._is_answering():
            if in_body:  # its request has been answered
                self._close()
            else:
                self._send_error(problem)
        elif not in_body:
            self._pending_error = problem
        elif self.pipeline:
            # Its request waits, as the newest: its turn comes.
            self.pipeline[0] = (self.cycle, responses.error_application(problem, self._traffic))
        else:
            # Its endpoint waits for the body, or is about to answer: this is the answer.
            self._send_error(problem, self.cycle.scope)
            self.cycle.waiting_for_100_continue = False
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _send_error(self, problem: Problem, scope: Any = None) -> None:
        # Until its target is read, the parser's method is the one of the request before it.
        is_head_method = self.url != b"" and self.parser.get_method() == b"HEAD"
        self._write(responses.closing(problem), with_body=not is_head_method)
        self._traffic.responded(problem.status, scope or {"client": self.client})
        self._close()

    def _write(self, response: Response, close: bytes = b"", *, with_body: bool) -> None:
        defaults = self.server_state.default_headers
        self.transport.write(responses.whole(defaults, response, close, with_body=with_body))

    def close_response(self) -> None:
        """Close behind a whole response, whose request's body may still be on its way."""
        if self.cycle.more_body:
            self._input = DISCARD
            self._stop_deadline()
            self._close()
        else:
            self.transport.close()

    def _close(self) -> None:
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._deadline = self._timer(LINGER_SECONDS, self._hang_up)
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        self.transport.close()  # which waits until the client has read everything
        next_step = self._hang_up if self.flow.write_paused else self.transport.abort
        self._deadline = self._timer(SEND_SECONDS, next_step)

    # Time

    def _timer(self, seconds: float, callback: Callable[[], object]) -> ReadFirstTimer:
        """A pause of the process is not the client's: what came meanwhile is read first."""
        return ReadFirstTimer(self.loop, self.loop.time() + seconds, callback)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if self.flow.read_paused:  # it is the service that does not read
            self._deadline = self._timer(RECEIVE_SECONDS, self._too_slow)
        else:
            self._refuse(TOO_SLOW)

    def shutdown(self) -> None:
        # uvicorn closes an idle connection at once, and loses what its client is just sending.
        self._stopping = True
        if self.cycle is not None:
            self.cycle.keep_alive = False
        self.timeout_keep_alive = DRAIN_SECONDS
        self._last_active = self.loop.time()
        self._unset_keepalive_if_required()
        self._watch_keep_alive(DRAIN_SECONDS)

    def timeout_keep_alive_handler(self) -> None:
        # The timer is not set anew for every request: it looks at how long it has been idle.
        # DISCARD ends by a deadline of its own, which lets the client read its error.
        busy = self._input is not IDLE or self._is_answering()
        idle = 0.0 if busy else self.loop.time() - self._last_active
        if idle < self.timeout_keep_alive:
            self._watch_keep_alive(self.timeout_keep_alive - idle)
        elif self._has_input():
            self._watch_keep_alive(self.timeout_keep_alive)
        else:
            self._hang_up()

    def _has_input(self) -> bool:
        """Whether bytes have come that the event loop, when it is late, has not read yet."""
        sockets = select.poll()
        sockets.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(sockets.poll(0))

    def _watch_keep_alive(self, seconds: float) -> None:
        handler = self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(seconds, handler)
