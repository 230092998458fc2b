"""uvicorn's HTTP/1.1 protocol, with what it lacks between a client and the routes.

Malformed requests get the API's own 400; a head has at most 16 KiB and 100 fields (431); a request
arrives within 5 s (408); a connection that never says anything is closed like an idle one, and one
whose client does not read is cut; a client that shuts its sending side still gets its answers; a
request to upgrade is answered as if it had not asked; a version that is not HTTP/1.0 or HTTP/1.1 is
a 400, and a transfer coding other than chunked a 501; of a pipeline, what one read of 4 KiB holds
is read ahead; when the server stops, a connection ends with an answer that says so, not with one
that never comes. What a response says of its connection is in persistence.py.

Relies on uvicorn 0.54's ``HttpToolsProtocol``: the parser's callbacks; ``cycle``, the newest
request whose head is complete; ``pipeline``, those that wait for the ones before them, newest
first; ``flow``, which pauses reading when one begins to wait; and ``timeout_keep_alive_task`` with
``_unset_keepalive_if_required()``.
"""

import asyncio
import functools
import select
from collections.abc import Callable, Sized
from typing import Any

import httptools
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from sesiones.http import heads
from sesiones.http.heads import MALFORMED
from sesiones.http.persistence import persistent
from sesiones.http.problems import Problem
from sesiones.http.requests import BODY_MAX_BYTES
from sesiones.tasks import ReadFirstTimer

HEAD_MAX_BYTES = 16 * 1024
HEAD_MAX_FIELDS = 100
FRAMING_MAX_BYTES = 128 * 1024
"""Of a chunked body, beside its content: 16 KiB in chunks of one byte take 96 KiB."""
RECEIVE_SECONDS = 5.0
PIECE_BYTES = 4096
"""What the parser gets at once: a queued request takes a hundred times its 25 bytes."""
SEND_SECONDS = 4.0
"""How long a client may read nothing of what it is sent, once that is more than buffers hold."""
DRAIN_SECONDS = 1
"""How long a connection may be idle once the server stops: a request may be on its way."""
LINGER_SECONDS = 0.5
"""How long a refused client may take to stop sending: closing on unread bytes would reset the
connection and lose the answer (RFC 9112, 9.6)."""

TOO_SLOW = Problem(408, f"La petición no llegó entera en {RECEIVE_SECONDS:.0f} s.")
TOO_LARGE = Problem(
    431, f"Las cabeceras superan los {HEAD_MAX_BYTES} bytes o los {HEAD_MAX_FIELDS} campos."
)


class _Flow(FlowControl):
    """Reads nothing while requests wait: uvicorn would go on after every answer, and whenever an
    endpoint wants a body, and a client could queue requests without end."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _defaults: tuple[object, bytes] = (None, b"")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._in_body = False
        self._head_bytes = 0  # of the chunks with the head, before the one being read
        self._head_end = b""  # of those chunks: the blank line may have begun in it
        self._strange_bytes = 0  # of them, those that may be of a message before it
        self._framing_bytes = 0  # of the body: chunk sizes, extensions and trailers
        self._chunk = b""
        self._from_start = True  # the head, where there is one, begins with the chunk or before it
        self._begun = False  # the message began in the chunk
        self._unread = b""  # behind the requests that wait
        self._line = b""  # the last bytes of a request line that has come in part
        self._reason = MALFORMED  # why the parser's callbacks raise
        self._deaf = False  # what the client still sends is of no use
        self._running: RequestResponseCycle | None = None
        self._parting: Problem | None = None  # the answer to a head that could not be read
        self._half_closed = False  # by the client: it still reads
        self._stopping = False  # the server: the next answer is the last one
        self._deadline: ReadFirstTimer | None = None
        self._stalled: ReadFirstTimer | None = None
        self._last_active = 0.0  # in the loop's time

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self._last_active = self.loop.time()
        self._watch_keep_alive(self.timeout_keep_alive)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, persistent(cycle, app, self.close_response))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._running is not None:  # uvicorn tells only the newest
            self._running.disconnected = True
            self._running.message_event.set()
        self._stop_deadline()
        if self._stalled is not None:
            self._stalled.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        self._half_closed = True
        if self._in_body:
            self._refuse(MALFORMED)  # its body was cut short
        return self._owes() and not self.cycle.disconnected  # else close

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._timer(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def data_received(self, data: bytes) -> None:
        self._read(self._unread + data)

    def _read(self, data: bytes) -> None:
        """Up to where requests wait: what is behind them waits as bytes, which take less room."""
        while data and not self.pipeline and not self._deaf:
            end = heads.piece_end(self._line, data, PIECE_BYTES)
            self._parse(data[:end])
            data = data[end:]
        self._unread = b"" if self._deaf else data

    def _parse(self, data: bytes) -> None:
        while True:
            self._chunk = data
            self._from_start = not self._in_body
            self._begun = False
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade(data[upgrade.args[0] :])
                continue
            except httptools.HttpParserError as error:
                if isinstance(error, httptools.HttpParserInvalidURLError):
                    self.url = b"?"  # the method before it was read
                self._refuse(self._reason)
                return
            break
        if data[-1:] != b"\n" and self._in_head and (self._begun or self._line):
            self._line = (self._line + data)[-heads.LINE_BYTES :]
            if heads.names_another_protocol(self._line):
                self._refuse(MALFORMED)
                return
        else:
            self._line = b""
        if self._in_head:
            self._head_bytes += len(data)
            self._head_end = data[-3:]
            if not self._from_start:
                self._strange_bytes = len(data)
            if self._head_bytes - self._strange_bytes > HEAD_MAX_BYTES:
                self._refuse(TOO_LARGE)
                return
        elif self._in_body and not self._begun:
            self._framing_bytes += len(data)
            if self._framing_bytes > FRAMING_MAX_BYTES:
                self._refuse(TOO_LARGE)
                return
        if (self._in_head or self._in_body) and self._deadline is None:
            self._deadline = self._timer(RECEIVE_SECONDS, self._too_slow)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head()

    def _begin_head(self) -> None:
        self._in_head = self._begun = True
        self._head_bytes = self._strange_bytes = self._framing_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer: no gateway has seen it
            super().on_header(name, value.strip(b" \t"))  # RFC 9110, 5.5

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("not a proxy")
            return  # the parser stops here
        version = self.parser.get_http_version()
        too_large = len(self.headers) > HEAD_MAX_FIELDS or self._head_too_long()
        problem = TOO_LARGE if too_large else heads.problem(version, self.headers)
        if problem is not None:
            self._reason = problem
            raise ValueError(problem.detail)
        # RFC 9110, 10.1.1: the field is a list, and HTTP/1.0 does not have it.
        expected = heads.options(self.headers, b"expect")
        self.expect_100_continue = version == "1.1" and b"100-continue" in expected
        super().on_headers_complete()
        if version == "1.0":  # RFC 9112, 9.3
            options = heads.options(self.headers, b"connection")
            self.cycle.keep_alive = b"keep-alive" in options and b"close" not in options
        if self._stopping:
            self.cycle.keep_alive = False
        self._in_head, self._in_body = False, True

    def _without_upgrade(self, rest: bytes) -> bytes:
        """The head without its Upgrade field, which a server may ignore (RFC 9110, 7.8), and what
        follows, to be read again: the parser takes what follows an upgrade, even the request's
        own body, for another protocol. Java's HttpClient asks for h2c with every request."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._in_head = False
        return b"".join([*lines, b"\r\n", rest])

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body)
        if len(self.cycle.body) + len(body) <= BODY_MAX_BYTES and not self.cycle.response_complete:
            self.cycle.body += body  # no endpoint is woken for a part that it can do nothing with
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._in_head:  # and asks for an upgrade
            return
        self._in_body = self._from_start = False
        self._stop_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._unread:
            self._read(self._unread)
        self.flow.resume_reading()
        if not self._owes():
            if self._parting is not None:
                self._part(self._parting)
            elif self._half_closed:
                self.transport.close()

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
        busy = self._in_head or self._in_body or self._owes()
        idle = 0.0 if busy else self.loop.time() - self._last_active
        if idle < self.timeout_keep_alive:
            self._watch_keep_alive(self.timeout_keep_alive - idle)
        elif self._arrived():
            self._watch_keep_alive(self.timeout_keep_alive)
        else:
            self._hang_up()

    def _arrived(self) -> bool:
        """Whether something has come that the event loop, when it is late, has not read yet."""
        arrivals = select.poll()
        arrivals.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(arrivals.poll(0))

    def _watch_keep_alive(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def _head_too_long(self) -> bool:
        if self._head_bytes + len(self._chunk) <= HEAD_MAX_BYTES:  # the usual case
            return False
        if self._from_start and not self._strange_bytes:
            before = b"" if self._begun else self._head_end
            text = before + (self._chunk.lstrip(b"\r\n") if self._begun else self._chunk)
            end = text.find(b"\r\n\r\n") + 4 - len(before)
            return self._head_bytes + end > HEAD_MAX_BYTES
        # It began behind another message, nobody knows where.
        line = len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n")
        fields = sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)
        return line + fields + len("\r\n") > HEAD_MAX_BYTES

    def _owes(self) -> bool:
        """Whether a request whose head is complete has not been answered."""
        return self.cycle is not None and not self.cycle.response_complete

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

    def _refuse(self, problem: Problem) -> None:
        """Answer the request that is being received with an error, in its turn, and close."""
        if self._deaf:
            return
        self._deaf = True
        self._stop_deadline()
        if not self._owes():
            # A body that nobody waits for, or a head with nothing before it.
            if self._in_body:
                self._close()
            else:
                self._part(problem)
        elif not self._in_body:
            self._parting = problem  # once those before it have been answered
        elif self.pipeline:
            # It waits in the queue, as the newest: its turn comes.
            self.pipeline[0] = (self.cycle, _refusal(problem))
        else:
            # Its endpoint waits for the body, or is about to answer: this is the answer.
            self._part(problem)
            self.cycle.waiting_for_100_continue = False
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _part(self, problem: Problem) -> None:
        """Answer the request that is being received, and close."""
        # Until its target is read, the parser's method is the one of the request before it.
        head = self.url != b"" and self.parser.get_method() == b"HEAD"
        self._write(_closing(problem), body=not head)
        self._close()

    def _write(self, response: Response, *, close: bytes = b"", body: bool = True) -> None:
        """A whole response, as uvicorn would write it."""
        lines = [STATUS_LINE[response.status_code], self._default_headers()]
        for name, value in response.raw_headers:
            lines += [name, b": ", value, b"\r\n"]
        self.transport.write(
            b"".join([*lines, close, b"\r\n", bytes(response.body) if body else b""])
        )

    def _default_headers(self) -> bytes:
        """The lines that every response begins with: uvicorn makes the list anew each second."""
        headers = self.server_state.default_headers
        if HttpProtocol._defaults[0] is not headers:
            lines = b"".join([b"%b: %b\r\n" % header for header in headers])
            HttpProtocol._defaults = headers, lines
        return HttpProtocol._defaults[1]

    def close_response(self) -> None:
        """Close behind a whole response, whose request's body may still be on its way."""
        if self._in_body:
            self._deaf = True
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
        self._deadline = self._timer(SEND_SECONDS, self.transport.abort)


@functools.cache  # there are few, and a flood of slow clients wants them at once
def _closing(problem: Problem) -> Response:
    response = problem.response()
    response.headers["Connection"] = "close"
    return response


def _refusal(problem: Problem) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await _closing(problem)(scope, receive, send)

    return app
