"""The service in this process: the real protocol, application and store on a transport that is an
object. The Redis is a real one, or a FixedStore, whose sessions nothing changes."""

import asyncio
import itertools
import json
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import uvicorn
from uvicorn.server import ServerState

from sesiones import tokens
from sesiones.http.app import create_app
from sesiones.http.fast_check import FastCheckProtocol
from sesiones.http.protocol import BODY, HEAD, HttpProtocol
from sesiones.redis_client import Lease, OnReply
from sesiones.sesion import Sesion
from sesiones.settings import Settings
from sesiones.store.scripts import CREATE, END, END_ALL, END_USER, LIST, REVOKE, UPDATE
from tests.harness.stores import KEY

NOW = 1_800_000_000
NEW_ID = 4096
"""The ID_Sesion of every session that is created on a FixedStore."""
DEVICE = "móvil"
INPUTS_KEPT = 10
"""How many of a connection's last inputs a violation shows."""
SETTINGS = {"SESIONES_SERVICE_KEY": KEY, "SESIONES_REDIS_TIMEOUT": "5"}
"""A busy machine makes no 503 with this timeout."""
CACHED = {"SESIONES_CACHE_SECONDS": "3600", "SESIONES_TOUCH_SECONDS": "900"}
"""On a FixedStore, what was read once is answered from memory from then on."""


class Sessions:
    """What mutations put into requests, and what the oracle may see let in."""

    def __init__(self) -> None:
        self.tokens: list[bytes] = []
        """Good ones and bad ones."""
        self.objects: list[list[bytes]] = []
        """Sessions: their members as JSON."""
        self.live: dict[int, tuple[bytes, int]] = {}
        """The token and the user of each session that is or was active, by ID_Sesion."""
        self.clear()

    def clear(self) -> None:
        """Forget the sessions, but for ``live``: answers that show them may still come."""
        self.tokens[:] = [tokens.make(7).encode(), b"ses_", b"", b"x" * 49]
        self.objects.clear()

    def add(self, sesion: Mapping[str, Any]) -> None:
        token = sesion["Token_Sesion"].encode()
        self.tokens += [token] * 2
        self.objects.append([json.dumps(v, ensure_ascii=False).encode() for v in sesion.values()])
        if sesion["Estado_Sesion"]:
            self.live[sesion["ID_Sesion"]] = token, sesion["ID_Usuario"]


def _numbers(text: bytes) -> list[bytes]:
    """The integers of a session's record."""
    return text.partition(b":")[0].split()


class FixedStore(Sessions):
    """Stands in for the Redis client, and replies what the scripts would reply for four sessions.
    Nothing changes them, so that two connections that send the same get the same."""

    batch_max, in_flight_max, node_of = 256, 4, None

    def __init__(self) -> None:
        super().__init__()
        self._records: dict[str, tuple[bytes, int]] = {}
        self._lease = Lease()
        self._lease.extend(math.inf)
        for number, (user, state) in enumerate([(7, 1), (7, 1), (7, 0), (8, 1)], 1):
            token = tokens.make(user)
            key = f"sesiones:{{{tokens.bucket(token)}}}:h:{tokens.digest(token)}"
            record = f"{NOW} 0 1800 {state} {number} {user}:{DEVICE}"
            self._records[key] = record.encode(), NOW + 1800
            self.add(Sesion(number, user, token, NOW, NOW + 1800, state, NOW, DEVICE)._asdict())

    async def execute(
        self, *arguments: Any, keys: Sequence[str] = (), on_reply: OnReply | None = None, **_: Any
    ) -> Any:
        tagged = [arguments[-1], self._reply(arguments, keys)]
        return tagged if on_reply is None else on_reply(tagged)

    execute_on_master = execute

    def connection(self, _: object) -> None:
        """None is open."""

    def _reply(self, arguments: tuple[Any, ...], keys: Sequence[str]) -> Any:
        found: list[Any] = [self._records.get(key, (None, None)) for key in keys]
        match arguments[1]:
            case CREATE.sha:
                user, device = arguments[7:9]
                return [f"{NOW} 0 1800 1 {NEW_ID} {user}:{device}".encode(), NOW + 1800]
            case UPDATE.sha:
                return self._update(found[0], arguments[4:])
            case END.sha | END_ALL.sha:
                caller, designated = (text and _numbers(text) for text, _ in found)
                if not caller or caller[3] != b"1":
                    return -1
                if designated and designated[5] != caller[5]:
                    return -2
                return [b"", [b"A" * 22, *designated[4:]]] if designated else [b""]
            case LIST.source:
                return [[digest, *record, 1] for digest, record in self._of_user(keys[0])]
            case END_USER.sha:
                ended = [_numbers(text) for _, (text, _) in self._of_user(keys[0])]
                number = str(arguments[3 + len(keys)]).encode()
                chosen = (one for one in ended if number in (b"", one[4]))
                return [b"", *([b"A" * 22, *one[4:]] for one in chosen)]
            case REVOKE.sha:
                text = found[0][0]
                return [b"", *([[b"A" * 22, *_numbers(text)[4:]]] if text else [])]
        return [*itertools.chain(*found), NOW * 1_000_000, 0, []]

    def _of_user(self, index: str) -> list[tuple[bytes, tuple[bytes, int]]]:
        """The digest and the record of each session of the index's user."""
        base, _, user = index.rpartition("u:")
        return [
            (key.removeprefix(f"{base}h:").encode(), record)
            for key, record in self._records.items()
            if key.startswith(base) and _numbers(record[0])[5] == user.encode()
        ]

    def on_owner_change(self, _: object) -> None:
        """No key changes its owner."""

    def subscribe(self, *_: object) -> None:
        """Nothing changes."""

    def lease(self, _: str) -> Lease:
        return self._lease

    def last_answered_sent_at(self, _: str) -> float:
        return time.monotonic()

    def _update(self, record: Any, given: Sequence[Any]) -> list[Any]:
        text, expiry = record
        if text is None:
            return [b"absent", None]
        begun, *_, number, user = _numbers(text)
        if [b"%d" % value for value in given[:3]] != [number, user, begun]:
            return [b"immutable", b"ID_Usuario"]
        if given[3] <= given[5]:
            return [b"dates", b"window"]
        return [b"ok", text, expiry]

    async def aclose(self) -> None:
        pass


class Transport:
    """Keeps what the service writes, and how it leaves the connection."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closing = False
        self.ended = False

    def write(self, data: bytes) -> None:
        if self.ended and not self.closing:
            raise RuntimeError("written after write_eof()")  # as asyncio does
        self.written += data

    def close(self) -> None:
        self.closing = self.ended = True

    abort = close

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 8000) if name in ("peername", "sockname") else default


@dataclass
class Application:
    """The application and what uvicorn gives a protocol."""

    config: uvicorn.Config
    state: ServerState
    app_state: dict[str, Any]
    errors: list[str]
    """What is logged as an error, or left to the event loop."""


class Wire:
    """One connection to the protocol."""

    def __init__(
        self, application: Application, protocol: type[HttpProtocol] = FastCheckProtocol
    ) -> None:
        self.sent: deque[list[bytes]] = deque(maxlen=INPUTS_KEPT)
        """The last inputs, in the pieces in which they were sent."""
        self.transport = Transport()
        self.protocol = protocol(application.config, application.state, dict(application.app_state))
        self.protocol.connection_made(self.transport)  # type: ignore[arg-type]

    def send(self, piece: bytes) -> None:
        if not self.transport.ended:
            self.protocol.data_received(piece)

    def take(self, *, whole: bool = True) -> bytes:
        """What has been written since the last time. ``whole``: every answer has come."""
        written = bytes(self.transport.written)
        self.transport.written.clear()
        return written

    @property
    def within(self) -> bool:
        """Whether a request has come in part."""
        return self.protocol._input in (HEAD, BODY)

    @property
    def owed(self) -> bool:
        """Whether a request whose head is complete has not been answered."""
        return not self.transport.ended and self.protocol._is_answering()

    @property
    def ended(self) -> bool:
        return self.transport.ended

    def end(self) -> None:
        """The client shuts its side, as asyncio would tell."""
        if not self.transport.closing and not self.protocol.eof_received():
            self.transport.close()

    def lose(self) -> None:
        """The connection is gone."""
        self.transport.close()
        self.protocol.connection_lost(None)


class _Errors(logging.Handler):
    """Keeps what the code under test logs as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(logging.Formatter().format(record))


@asynccontextmanager
async def open_application(
    redis: FixedStore | str, *, cached: bool = False
) -> AsyncIterator[Application]:
    """The application on a FixedStore, or on the Redis at a URL; ``cached``: with a near-cache."""
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: errors.found.append(repr(context))
    )
    with ExitStack() as stack:
        settings = SETTINGS | CACHED if cached else dict(SETTINGS)
        if isinstance(redis, str):
            settings["SESIONES_REDIS_URL"] = redis
        else:
            stack.enter_context(patch("sesiones.store.from_settings.connect", return_value=redis))
        app = create_app(Settings.read(settings, {}))
    config = uvicorn.Config(
        app,
        ws="none",
        http=FastCheckProtocol,
        log_config=None,
        access_log=False,
        proxy_headers=False,
    )
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Thu, 01 Jan 2026 00:00:00 GMT")]
    try:
        async with app.router.lifespan_context(app) as app_state:
            yield Application(config, state, dict(app_state or {}), errors.found)
    finally:
        logging.getLogger().removeHandler(errors)
