"""The session store on Redis: find, create, update, end, end_all.

The only module that names a key. Each operation is one atomic script on one hash slot (lua/);
lua/session.lua says what lies where. An absent session is a value; only Redis failing raises.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib.resources import files
from typing import Any, Literal

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError

from sesiones import tokens
from sesiones.batching import Batcher
from sesiones.cluster import SlotMovedError
from sesiones.connection import Commands
from sesiones.link import Argument
from sesiones.sesion import Sesion

logger = logging.getLogger("sesiones.store")


class StoreUnavailable(Exception):
    """Redis cannot answer, or refuses: the operation may or may not have happened."""


class Refusal(Enum):
    """Why a session was not ended."""

    UNAUTHENTICATED = -1
    """The caller's own session is not live and active."""
    FORBIDDEN = -2
    """The designated session is another user's."""


@dataclass(frozen=True, slots=True)
class Immutable:
    """An update was refused: it changes fields that never change."""

    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BadDates:
    """An update was refused: its Fecha_Expiracion is not after its Ultima_Actividad (window),
    beyond the absolute lifetime (lifetime), or would have passed already (past)."""

    reason: Literal["window", "lifetime", "past"]


class _Script:
    """One file of lua/, with session.lua after its first line."""

    def __init__(self, name: str) -> None:
        folder = files("sesiones") / "lua"
        shebang, _, body = (folder / f"{name}.lua").read_text("utf-8").partition("\n")
        shared = (folder / "session.lua").read_text("utf-8")
        self.source = f"{shebang}\n{shared}\n{body}"
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


_MOVING_SECONDS = 0.01
"""Between two tries of a call whose keys are being moved from one node of a Cluster to another."""

_CHECK, _PEEK = _Script("check"), _Script("peek")
_CREATE, _UPDATE = _Script("create"), _Script("update")
_END, _END_ALL = _Script("end"), _Script("end_all")


class SessionStore:
    """Sessions in Redis.

    Every method raises StoreUnavailable when Redis does not answer within ``timeout_seconds``
    or refuses. ``idle_seconds``: a new session's window; ``max_seconds``: the longest life;
    ``touch_seconds``: how old Ultima_Actividad must be before a check slides it;
    ``max_per_user``: sessions a user may have.
    """

    def __init__(
        self,
        commands: Commands,
        *,
        key_prefix: str,
        idle_seconds: int,
        max_seconds: int,
        touch_seconds: int,
        max_per_user: int,
        timeout_seconds: float,
    ) -> None:
        self._commands = commands
        self._key_prefix = key_prefix
        self._idle_seconds = idle_seconds
        self._max_seconds = max_seconds
        self._touch_seconds = touch_seconds
        self._max_per_user = max_per_user
        self._timeout_seconds = timeout_seconds
        self._batchers: dict[Hashable, Batcher[str, Sesion | None]] = {}
        self.check = self._batcher(None).submit if commands.node_of is None else self._submit
        """find() without a task: calls the second argument with its answer, or what it raises."""
        self._failed_at: float | None = None

    async def find(self, token: str) -> Sesion | None:
        """The live and active session of a well-formed token, slid when due; else None."""
        future: asyncio.Future[Sesion | None] = asyncio.get_running_loop().create_future()

        def done(answer: Sesion | Exception | None) -> None:
            if future.done():  # the caller left
                return
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        self.check(token, done)
        return await future

    async def create(self, ID_Usuario: int, Dispositivo: str) -> Sesion:
        """A new session with a new token. A user at the limit loses the one that expires first."""
        token = tokens.make(ID_Usuario)  # before the first try: a second one finds its session
        base = self._base(token)
        reply = await self._run(
            _CREATE,
            [self._key(token), f"{base}u:{ID_Usuario}", f"{base}n"],
            tokens.bucket_number(tokens.bucket(token)),
            ID_Usuario,
            Dispositivo,
            self._idle_seconds,
            self._max_seconds,
            self._max_per_user,
        )
        with _understood():
            sesion = _session(token, reply)
        if sesion is None:
            raise StoreUnavailable("the new session could not be read back")
        return sesion

    async def update(self, given: Sesion) -> Sesion | Immutable | BadDates | None:
        """Update the live session of the given object's token, active or not, and return it as
        it now stands; None when there is none."""
        if not tokens.is_well_formed(given.Token_Sesion):
            return None
        reply = await self._run(
            _UPDATE,
            [self._key(given.Token_Sesion)],
            given.ID_Sesion,
            given.ID_Usuario,
            given.Fecha_Inicio,
            given.Fecha_Expiracion,
            given.Estado_Sesion,
            given.Ultima_Actividad,
            given.Dispositivo,
            self._max_seconds,
        )
        with _understood():
            outcome, *details = reply
            match outcome:
                case b"immutable":
                    return Immutable(tuple(field.decode() for field in details))
                case b"dates":
                    return BadDates(details[0].decode())
                case b"ok" | b"absent":
                    return _session(given.Token_Sesion, details[0] if details else None)
            raise ValueError(outcome)

    async def end(self, caller: str, designated: str) -> int | Refusal:
        """End the designated session, of the same user as the caller's: how many ended, 0 or 1.

        Never tried twice: a caller that lost the reply asks again.
        """
        return await self._end(_END, caller, designated)

    async def end_all(self, caller: str, designated: str) -> int | Refusal:
        """End every live session of the caller's user: how many ended. Never tried twice."""
        return await self._end(_END_ALL, caller, designated)

    async def aclose(self) -> None:
        """Close the connection to Redis."""
        await self._commands.aclose()

    def _base(self, token: str) -> str:
        return f"{self._key_prefix}:{{{tokens.bucket(token)}}}:"

    def _key(self, token: str) -> str:
        # _base(), spelled out: the check comes here.
        return f"{self._key_prefix}:{{{token[4:6]}}}:s:{tokens.digest(token)}"

    def _batcher(self, node: Hashable) -> Batcher[str, Sesion | None]:
        """The front of a node's checks: one that is slow holds up no other's."""
        if (batcher := self._batchers.get(node)) is None:
            batcher = self._batchers[node] = Batcher(
                self._check,
                self._timeout_seconds,
                batch_max=self._commands.batch_max,
                in_flight_max=self._commands.in_flight_max,
            )
        return batcher

    def _submit(self, token: str, done: Callable[[Sesion | Exception | None], None]) -> None:
        assert self._commands.node_of is not None
        self._batcher(self._commands.node_of(token[4:6])).submit(token, done)

    async def _check(
        self, batch: list[str], deadline: float
    ) -> Sequence[Sesion | Exception | None]:
        try:
            sesiones = await self._read(_CHECK, batch, deadline)
        except SlotMovedError:
            if len(batch) > 1:
                # They are no longer all on one node: each finds its own way.
                alone = await asyncio.gather(
                    *(self._check([token], deadline) for token in batch), return_exceptions=True
                )
                return [
                    answer if isinstance(answer, Exception) else answer[0]  # type: ignore[index]
                    for answer in alone
                ]
            # Its user's keys are being moved from node to node: no slide, it would need them all.
            sesiones = await self._read(_PEEK, batch, deadline)
        except _WritesRefused:
            sesiones = await self._read(_PEEK, batch, deadline, on_master=True)
        return [s if s is not None and s.Estado_Sesion == 1 else None for s in sesiones]

    async def _read(
        self,
        script: _Script,
        batch: list[str],
        deadline: float | None = None,
        *,
        on_master: bool = False,
    ) -> list[Sesion | None]:
        keys = [self._key(token) for token in batch]
        replies = await self._run(
            script,
            keys,
            self._touch_seconds,
            self._max_seconds,
            *keys,
            deadline=deadline,
            on_master=on_master,
        )
        with _understood():
            return [_session(token, reply) for token, reply in zip(batch, replies, strict=True)]

    async def _end(self, script: _Script, caller: str, designated: str) -> int | Refusal:
        designated_key = None
        if tokens.is_well_formed(designated):
            if tokens.bucket(designated) == tokens.bucket(caller):
                designated_key = self._key(designated)
            elif await self._read(_PEEK, [designated]) != [None]:
                # A bucket is a function of the user: another bucket's session is another user's.
                return Refusal.FORBIDDEN
        if designated_key is None:
            if script is _END:
                return 0
            designated_key = self._key(caller)
        ended: int = await self._run(script, [self._key(caller), designated_key], tries=1)
        with _understood():
            return Refusal(ended) if ended < 0 else ended

    async def _run(
        self,
        script: _Script,
        keys: list[str],
        *arguments: Argument,
        tries: int = 2,
        deadline: float | None = None,
        on_master: bool = False,
    ) -> Any:
        """The script's reply, by the deadline in the loop's time, or in ``timeout_seconds``. A
        second try follows at once, for a connection that Redis closed.

        A check raises SlotMovedError; the others go on until the keys are on one node again.
        """
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        reply = await self._evaluate(script, keys, arguments, on_master)
                        break
                    except SlotMovedError:
                        # Nothing was written, so that this was no try.
                        if script is _CHECK:
                            raise
                        await asyncio.sleep(_MOVING_SECONDS)
                    except (ReadOnlyError, RedisConnectionError) as error:
                        tries -= 1
                        if isinstance(error, ReadOnlyError):
                            # Demoted: nothing was written. The master is elsewhere.
                            self._commands.reset()
                        if tries < 1:
                            raise
        except SlotMovedError:
            raise
        except (RedisError, OSError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            self._log_failure(reason)
            refused = reason.startswith(("MISCONF", "NOREPLICAS"))
            raise (_WritesRefused if refused else StoreUnavailable)(reason) from error
        if self._failed_at is not None and script is not _PEEK:
            self._log_success()
        return reply

    def _log_failure(self, reason: str) -> None:
        """The first failure of an outage is logged, not each of its thousands."""
        if self._failed_at is None:
            logger.error("Redis is unavailable: %s", reason)
        self._failed_at = time.monotonic()

    def _log_success(self) -> None:
        """An outage is over when nothing has failed for a second."""
        if self._failed_at is not None and time.monotonic() - self._failed_at > 1:
            logger.info("Redis is available again")
            self._failed_at = None

    async def _evaluate(
        self, script: _Script, keys: list[str], arguments: tuple[Argument, ...], on_master: bool
    ) -> Any:
        execute: Callable[..., Awaitable[Any]] = self._commands.execute
        if on_master:
            execute = self._commands.execute_on_master
        elif script is _PEEK:
            execute = partial(execute, reads=True)
        # A batch takes keys of many slots, so it declares none; a lone one redirects its call.
        declared = keys if len(keys) == 1 or script not in (_CHECK, _PEEK) else ()
        try:
            return await execute(
                "EVALSHA", script.sha, len(declared), *declared, *arguments, keys=keys
            )
        except NoScriptError:
            return await execute(
                "EVAL", script.source, len(declared), *declared, *arguments, keys=keys
            )


class _WritesRefused(StoreUnavailable):
    """Redis answers, but takes no writes."""


@contextmanager
def _understood() -> Iterator[None]:
    """Whatever answers there is no Redis with our scripts, when its replies do not fit them."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise StoreUnavailable("a reply that no script of ours gives") from error


def _session(token: str, reply: list[Any] | bytes | None) -> Sesion | None:
    """The session of a script's reply (read() in lua/session.lua). A record that is none is an
    error of its own: logged, and as good as absent."""
    if reply is None:
        return None
    try:
        if isinstance(reply, bytes):
            raise ValueError(reply.decode(errors="replace"))
        id_, usuario, inicio, estado, actividad, _, dispositivo, expiracion = reply
        if estado not in (b"0", b"1"):
            raise ValueError("estado is neither 0 nor 1")
        return Sesion(
            int(id_),
            int(usuario),
            token,
            int(inicio),
            expiracion,
            int(estado),
            int(actividad),
            dispositivo.decode(),
        )
    except ValueError as error:
        logger.error("bad record of session %s: %s", tokens.fingerprint(token), error)
        return None
