"""The session store on Redis: find, create, update, end, end_all.

The only module that names a key. Each operation is one atomic script on one hash slot (lua/);
lua/session.lua says what lies where. An absent session is a value; only Redis failing raises.
"""

import asyncio
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib.resources import files
from typing import Any, Literal, Self

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sesiones import tokens
from sesiones.batching import Batcher
from sesiones.cluster import SlotMovedError
from sesiones.connection import Commands, connect
from sesiones.endings import Endings
from sesiones.link import (
    MISFITS,
    Argument,
    Concerned,
    Execute,
    Heard,
    SingleFlight,
    UnconfirmedError,
)
from sesiones.metrics import CREATED, ENDED, REDIS_ERRORS, Metrics
from sesiones.sesion import Sesion

logger = logging.getLogger("sesiones.store")

SLOW_SECONDS = 0.1
"""What takes longer is logged."""


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

_AGAIN_SECONDS = 0.25
"""Between two tries to end again what a failover may have brought back."""
_AGAIN_CALLS = 16
"""Those calls of one try that are out at once; checks go on beside them."""

_CHECK, _PEEK = _Script("check"), _Script("peek")
_CREATE, _UPDATE = _Script("create"), _Script("update")
_END, _END_ALL, _END_AGAIN = _Script("end"), _Script("end_all"), _Script("end_again")
_PROBE = _Script("probe")
_LIST, _END_USER, _AUDIT = _Script("list"), _Script("end_user"), _Script("audit")
_ABSENT = -2
"""EXPIRETIME's reply for a key that is not there."""
_COUNTERS_AT_ONCE = 256
"""Counters that was_used() asks for at a time."""
_DIGEST = re.compile(rb"[A-Za-z0-9_-]{%d}" % len(tokens.digest(""))).fullmatch
"""Of a session's key. No token leads to any other."""

# What the service runs; the rest is for operators.
_SCRIPTS = (_CHECK, _PEEK, _CREATE, _UPDATE, _END, _END_ALL, _END_AGAIN, _PROBE)


class _Outage:
    """Its first failure is logged, not each of its thousands, and that it is over: when nothing has
    failed for a second."""

    def __init__(self, failing: str, over: str) -> None:
        self._failing, self._over = failing, over
        self.failed_at: float | None = None

    def failed(self, reason: str) -> None:
        if self.failed_at is None:
            logger.error("%s: %s", self._failing, reason)
        self.failed_at = time.monotonic()

    def succeeded(self) -> None:
        if self.failed_at is not None and time.monotonic() - self.failed_at > 1:
            logger.info(self._over)
            self.failed_at = None


class SessionStore:
    """Sessions in Redis.

    Every method raises StoreUnavailable when Redis does not answer within ``timeout_seconds``
    or refuses. ``idle_seconds``: a new session's window; ``max_seconds``: the longest life;
    ``touch_seconds``: how old Ultima_Actividad must be before a check slides it;
    ``max_per_user``: sessions a user may have. ``wait_replicas``: how many must have what a method
    wrote before it returns, within 0.1 s (or two fifths of ``timeout_seconds``, if that is less);
    else it raises StoreUnavailable.
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
        writes: Commands | None = None,
        wait_replicas: int = 0,
        metrics: Metrics | None = None,
    ) -> None:
        """``writes``: for what waits for replicas; a check must not wait behind it."""
        self.metrics = metrics or Metrics()
        self._commands = commands
        self._writes = writes or commands
        self._every_commands = {self._commands, self._writes}
        self._wait_replicas = wait_replicas
        self._key_prefix = key_prefix
        self._idle_seconds = idle_seconds
        self._max_seconds = max_seconds
        self._touch_seconds = touch_seconds
        self._max_per_user = max_per_user
        self._timeout_seconds = timeout_seconds
        self._batchers: dict[Hashable, Batcher[str, Sesion | None]] = {}
        self.check = self._batcher(None).submit if commands.node_of is None else self._submit
        """find() without a task: calls the second argument with its answer, or what it raises."""
        self._outage = _Outage("Redis is unavailable", "Redis is available again")
        self._unconfirmed = _Outage("writes are not confirmed", "writes are confirmed again")
        self._slow_at = 0.0
        self._endings = Endings()
        self._ending_again = SingleFlight(self._end_again)
        for commands in self._every_commands:
            commands.watch(self._owe)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        key_prefix: str = "sesiones",
        idle_seconds: int = 1800,
        max_seconds: int = 43200,
        touch_seconds: int = 1,
        max_per_user: int = 1000,
        timeout_seconds: float = 0.25,
        wait_replicas: int = 0,
        metrics: Metrics | None = None,
    ) -> Self:
        """A store on the Redis of the URL, in any of the forms of SESIONES_REDIS_URL; no I/O until
        it is asked. The defaults are the service's. Raises ValueError for a bad URL."""
        return cls(
            connect(url, timeout_seconds),
            key_prefix=key_prefix,
            idle_seconds=idle_seconds,
            max_seconds=max_seconds,
            touch_seconds=touch_seconds,
            max_per_user=max_per_user,
            timeout_seconds=timeout_seconds,
            writes=connect(url, timeout_seconds) if wait_replicas else None,
            wait_replicas=wait_replicas,
            metrics=metrics,
        )

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

    async def create(self, ID_Usuario: int, Dispositivo: str, token: str | None = None) -> Sesion:
        """A new session. A user at the limit loses the one that expires first.

        ``token``: one that tokens.make() gave for the user; made anew by default. Its session, if
        it is there, is returned as it is.
        """
        if token is None:
            token = tokens.make(ID_Usuario)  # before the first try: a second one finds its session
        key, base = self._key(token), self._base(tokens.bucket(token))
        with self._operation("create", ID_Usuario):
            reply = await self._write(
                _CREATE,
                [key, self._index(ID_Usuario), f"{base}n"],
                tokens.bucket_number(tokens.bucket(token)),
                ID_Usuario,
                Dispositivo,
                self._idle_seconds,
                self._max_seconds,
                self._max_per_user,
                heard=partial(self._hear_created, key, base),
            )
        with _understood():
            made, ended = reply
            _ended(ended)
            sesion = _session(token, made)
        if sesion is None:
            raise StoreUnavailable("the new session could not be read back")
        self.metrics.add(CREATED)
        _log("created", sesion.ID_Sesion, ID_Usuario, tokens.fingerprint(token))
        return sesion

    async def update(self, given: Sesion) -> Sesion | Immutable | BadDates | None:
        """Update the live session of the given object's token, active or not, and return it as
        it now stands; None when there is none."""
        if not tokens.is_well_formed(given.Token_Sesion):
            return None
        key = self._key(given.Token_Sesion)
        if key in self._endings:
            return None
        with self._operation("update", given.ID_Usuario):
            reply = await self._write(
                _UPDATE,
                [key],
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
        with self._operation("logout"):
            return await self._end(_END, "logout", caller, designated)

    async def end_all(self, caller: str, designated: str) -> int | Refusal:
        """End every live session of the caller's user: how many ended. Never tried twice."""
        with self._operation("logout_all"):
            return await self._end(_END_ALL, "logout_all", caller, designated)

    async def sessions(self, ID_Usuario: int, *, deep: bool = False) -> list[Sesion]:
        """The user's live sessions, active or not. Redis has no tokens: Token_Sesion is the name
        that the log gives it, which is of no use to anyone else.

        ``deep``: those too that the user's index does not name, from a look at every key.
        """
        sesiones = []
        for digest, record, _ in await self._sessions_of(ID_Usuario, deep):
            with _understood():
                fingerprint = tokens.fingerprint_of_digest(digest)
                if sesion := _session(f"ses_#{fingerprint}", record, fingerprint):
                    sesiones.append(sesion)
        return sesiones

    async def end_user(
        self, ID_Usuario: int, ID_Sesion: int | None = None, *, deep: bool = False
    ) -> int:
        """End one session of the user, or all, for an operator: how many ended.

        ``deep``: those too that the user's index does not name, from a look at every key.
        """
        which = "" if ID_Sesion is None else ID_Sesion
        sessions = await self._sessions_of(ID_Usuario, deep) if deep else []
        ended = await self._write(
            _END_USER,
            [self._index(ID_Usuario)],
            which,
            *(digest for digest, _, is_indexed in sessions if not is_indexed),
            tries=1,
            heard=partial(self._hear_ended, "operator", self._base(tokens.user_bucket(ID_Usuario))),
        )
        with _understood():
            return len(_ended(ended))

    async def audit(self) -> AsyncIterator[tuple[int, list[tuple[str, str]]]]:
        """Look through every key of this prefix, some at a time: how many those were, and the
        faults among them, as the key and what is wrong with it.

        What is there all the while is seen; of what comes or goes, some.
        """
        with _unavailable(), _understood():
            async for execute, keys in self._scan(f"{self._base('??')}*"):
                faults = await execute("EVAL", _AUDIT.source, 0, *keys) if keys else []
                yield (
                    len(keys),
                    [(key.decode(errors="replace"), what.decode()) for key, what in faults],
                )

    async def was_used(self) -> bool:
        """Whether there is or was a session under this prefix.

        A bucket's counter never expires, so those are asked for first. Only an eviction loses them:
        then any key will do, if SCAN is allowed.
        """
        counters = [f"{self._base(bucket)}n" for bucket in tokens.buckets()]
        with _unavailable():
            for start in range(0, len(counters), _COUNTERS_AT_ONCE):
                asked = (
                    self._commands.execute("EXPIRETIME", key, keys=[key], reads=True)
                    for key in counters[start : start + _COUNTERS_AT_ONCE]
                )
                if any(expiry != _ABSENT for expiry in await asyncio.gather(*asked)):
                    return True
            with contextlib.suppress(NoPermissionError):
                async with contextlib.aclosing(self._scan(f"{self._base('??')}*")) as found:
                    async for _, keys in found:
                        if keys:
                            return True
        return False

    async def probe(self, seconds: float) -> None:
        """Whether Redis takes writes and has every script, within the time: raises
        StoreUnavailable when it does not. Loads missing scripts, and writes nothing.

        One master of a Cluster is enough: with it this node serves a part of the users.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        with _unavailable():
            async with asyncio.timeout_at(deadline):
                masters = await self._commands.masters()
        probes = (self._probe(execute, deadline) for execute in masters.values())
        failures = await asyncio.gather(*probes, return_exceptions=True)
        if None not in failures:
            raise next((f for f in failures if f), StoreUnavailable("no master is known"))

    async def aclose(self) -> None:
        """Close the connections to Redis."""
        await self._ending_again.aclose()
        for commands in self._every_commands:
            await commands.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _probe(self, execute: Execute, deadline: float) -> None:
        with _unavailable(), _understood():
            async with asyncio.timeout_at(deadline):
                shas = [script.sha for script in _SCRIPTS]
                for script, loaded in zip(
                    _SCRIPTS, await execute("SCRIPT", "EXISTS", *shas), strict=True
                ):
                    if not loaded:
                        await execute("SCRIPT", "LOAD", script.source)
                try:
                    await execute("EVALSHA", _PROBE.sha, 0, self._index(0))
                except ReadOnlyError:
                    self._reset()  # demoted: the next one finds the master
                    raise

    async def _sessions_of(self, ID_Usuario: int, deep: bool) -> list[tuple[str, Any, bool]]:
        """The user's live sessions: digest, record (read() in lua/session.lua), and whether the
        user's index names it."""
        digests: set[bytes] = set()
        if deep:
            base = f"{self._base(tokens.user_bucket(ID_Usuario))}s:"
            with _unavailable(), _understood():
                async for _, keys in self._scan(f"{base}*"):
                    digests |= {key.removeprefix(base.encode()) for key in keys}
        found = await self._run(_LIST, [self._index(ID_Usuario)], *filter(_DIGEST, digests))
        with _understood():
            sessions = [(digest.decode(), record, bool(known)) for digest, record, known in found]
        if missing := sum(not is_indexed for _, _, is_indexed in sessions):
            logger.warning(
                "the index of user %s is incomplete: it lacks %d of %d live sessions",
                *(ID_Usuario, missing, len(sessions)),
                extra={"ID_Usuario": ID_Usuario},
            )
        return sessions

    async def _scan(self, pattern: str) -> AsyncGenerator[tuple[Execute, list[bytes]], None]:
        """The keys of the pattern, some at a time, and execute() on the master that has them."""
        for execute in (await self._commands.masters()).values():
            cursor = b"0"
            while True:
                cursor, keys = await execute("SCAN", cursor, "MATCH", pattern, "COUNT", 500)
                yield execute, keys
                if int(cursor) == 0:
                    break

    def _base(self, bucket: str) -> str:
        return f"{self._key_prefix}:{{{bucket}}}:"

    def _index(self, ID_Usuario: int) -> str:
        return f"{self._base(tokens.user_bucket(ID_Usuario))}u:{ID_Usuario}"

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
                overdue=lambda: StoreUnavailable("it has waited its whole time"),
                observe=self._checked,
            )
        return batcher

    def _submit(self, token: str, done: Callable[[Sesion | Exception | None], None]) -> None:
        assert self._commands.node_of is not None
        self._batcher(self._commands.node_of(token[4:6])).submit(token, done)

    async def _check(
        self, batch: list[str], deadline: float
    ) -> Sequence[Sesion | Exception | None]:
        self.metrics.batch_sent(len(batch))
        try:
            return await self._answers(batch, deadline)
        except StoreUnavailable:
            raise
        except Exception as error:  # a bug of ours: no check is answered with anything but a 503
            logger.exception("a batch of checks failed")
            raise StoreUnavailable("a batch of checks failed") from error
        finally:
            self.metrics.batch_over(len(batch))

    async def _answers(
        self, batch: list[str], deadline: float
    ) -> Sequence[Sesion | Exception | None]:
        try:
            sesiones, slides = await self._read(_CHECK, batch, deadline)
            self.metrics.slid(slides)
        except SlotMovedError:
            if len(batch) > 1:
                # They are no longer all on one node: each finds its own way.
                alone = await asyncio.gather(
                    *(self._answers([token], deadline) for token in batch), return_exceptions=True
                )
                return [
                    answer if isinstance(answer, Exception) else answer[0]  # type: ignore[index]
                    for answer in alone
                ]
            # Its user's keys are being moved from node to node: no slide, it would need them all.
            sesiones, _ = await self._read(_PEEK, batch, deadline)
        except _WritesRefused:
            sesiones, _ = await self._read(_PEEK, batch, deadline, on_master=True)
        return [s if s is not None and s.Estado_Sesion == 1 else None for s in sesiones]

    async def _read(
        self,
        script: _Script,
        batch: list[str],
        deadline: float | None = None,
        *,
        on_master: bool = False,
    ) -> tuple[list[Sesion | None], int]:
        """The sessions, active or not, and how many were slid."""
        keys = [self._key(token) for token in batch]
        execute: Execute = self._commands.execute
        if on_master:
            execute = self._commands.execute_on_master
        elif script is _PEEK:
            execute = partial(execute, reads=True)
        replies = await self._run(
            script,
            keys,
            self._touch_seconds,
            self._max_seconds,
            *keys,
            execute=execute,
            deadline=deadline,
        )
        with _understood():
            slides: int = replies.pop()
            sesiones = [_session(token, reply) for token, reply in zip(batch, replies, strict=True)]
        if self._endings.any_of(keys):
            for index, key in enumerate(keys):
                if key in self._endings:
                    sesiones[index] = None
        return sesiones, slides

    async def _end(
        self, script: _Script, reason: str, caller: str, designated: str
    ) -> int | Refusal:
        caller_key, designated_key = self._key(caller), None
        if caller_key in self._endings:
            return Refusal.UNAUTHENTICATED
        if tokens.is_well_formed(designated):
            if tokens.bucket(designated) == tokens.bucket(caller):
                designated_key = self._key(designated)
            elif (await self._read(_PEEK, [designated]))[0] != [None]:
                # A bucket is a function of the user: another bucket's session is another user's.
                return Refusal.FORBIDDEN
        if designated_key is None:
            if script is _END:
                return 0
            designated_key = caller_key
        ended = await self._write(
            script,
            [caller_key, designated_key],
            tries=1,
            heard=partial(self._hear_ended, reason, self._base(tokens.bucket(caller))),
        )
        with _understood():
            return Refusal(ended) if isinstance(ended, int) else len(_ended(ended))

    def _hear_created(self, key: str, base: str, reply: Any) -> None:
        # Where the session of a first try has ended meanwhile, the next one has made it anew.
        self._endings.forget(key)
        self._hear_ended("limit", base, reply)

    def _hear_ended(self, reason: str, base: str, reply: Any) -> None:
        """Sessions have ended for the reason, whether it is confirmed or not, and whether the
        caller is still there or not."""
        with contextlib.suppress(*MISFITS):  # of which the caller complains, or a refusal
            for digest, ID_Sesion, ID_Usuario in _ended(reply[1] if reason == "limit" else reply):
                self._endings.remember(f"{base}s:{digest}")
                self.metrics.add(ENDED, reason)
                fingerprint = tokens.fingerprint_of_digest(digest)
                _log("ended", ID_Sesion, ID_Usuario, fingerprint, reason)

    def _owe(self, concerned: Concerned) -> None:
        """Keys have come into other hands, which may not know all that has ended."""
        if self._endings.owe(concerned):
            self._ending_again.start()

    async def _end_again(self) -> None:
        """Until nothing is owed."""
        while owed := self._endings.owed():
            back = 0
            for start in range(0, len(owed), _AGAIN_CALLS):
                calls = map(self._end_once_more, owed[start : start + _AGAIN_CALLS])
                ended = [count for count in await asyncio.gather(*calls) if count is not None]
                back += sum(ended)
                if not ended:
                    await asyncio.sleep(_AGAIN_SECONDS)
            if back:
                logger.warning("%d sessions that had ended were back, and have been ended", back)

    async def _end_once_more(self, keys: list[str]) -> int | None:
        """How many of them were back. None: it is not known, or they may have come into other
        hands meanwhile."""
        changes = self._endings.changes
        base = keys[0].rpartition("s:")[0]
        heard = partial(self._hear_ended, "failover", base)
        try:
            ended = await self._run(
                _END_AGAIN, keys, execute=partial(self._writes.execute, heard=heard)
            )
            with _understood():
                count = len(_ended(ended))
        except StoreUnavailable:
            return None
        self._endings.settle(keys, changes)
        return count

    def _checked(self, asked: list[float], answers: Sequence[Sesion | Exception | None]) -> None:
        seconds = self.metrics.checked(asked, answers)
        first = answers[0]
        if seconds > SLOW_SECONDS and not isinstance(first, Exception):
            self._log_slow("check", seconds, first.ID_Usuario if first else None)

    @contextlib.contextmanager
    def _operation(self, name: str, ID_Usuario: int | None = None) -> Iterator[None]:
        """Counts an operation that is no check, and logs it when it is slow."""
        self.metrics.begun(name)
        begun = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - begun
            self.metrics.over(name, seconds)
            if seconds > SLOW_SECONDS:
                self._log_slow(name, seconds, ID_Usuario)

    def _log_slow(self, operation: str, seconds: float, ID_Usuario: int | None) -> None:
        """One a second: under overload all are slow, and the metrics say how many."""
        if time.monotonic() - self._slow_at > 1:
            self._slow_at = time.monotonic()
            extra: dict[str, object] = {"operation": operation, "seconds": seconds}
            if ID_Usuario is not None:
                extra["ID_Usuario"] = ID_Usuario
            logger.warning("slow: %s took %.3f s", operation, seconds, extra=extra)

    async def _write(
        self,
        script: _Script,
        keys: list[str],
        *arguments: Argument,
        tries: int = 2,
        heard: Heard | None = None,
    ) -> Any:
        """_run(), once enough replicas have what it wrote."""
        execute = partial(self._writes.execute, replicas=self._wait_replicas, heard=heard)
        reply = await self._run(script, keys, *arguments, execute=execute, tries=tries)
        self._unconfirmed.succeeded()
        return reply

    async def _run(
        self,
        script: _Script,
        keys: list[str],
        *arguments: Argument,
        execute: Execute | None = None,
        tries: int = 2,
        deadline: float | None = None,
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
                    begun = time.monotonic()
                    try:
                        reply = await self._evaluate(
                            execute or self._commands.execute, script, keys, arguments
                        )
                        self.metrics.redis_replied(time.monotonic() - begun)
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
                            self._reset()
                        if tries < 1:
                            raise
        except SlotMovedError:
            raise
        except (RedisError, OSError, TimeoutError) as error:
            self.metrics.add(REDIS_ERRORS, _kind(error))
            reason = str(error) or type(error).__name__
            outage = self._unconfirmed if isinstance(error, UnconfirmedError) else self._outage
            outage.failed(reason)
            refused = reason.startswith(("MISCONF", "NOREPLICAS"))
            raise (_WritesRefused if refused else StoreUnavailable)(reason) from error
        if self._outage.failed_at is not None and script is not _PEEK:
            self._outage.succeeded()
        return reply

    def _reset(self) -> None:
        for commands in self._every_commands:
            commands.reset()

    async def _evaluate(
        self,
        execute: Execute,
        script: _Script,
        keys: list[str],
        arguments: tuple[Argument, ...],
    ) -> Any:
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


def _kind(error: Exception) -> str:
    """Of the metric: what went wrong, as far as an operator would go elsewhere for it."""
    if isinstance(error, (TimeoutError, RedisTimeoutError)) or str(error) == "no reply in time":
        return "timeout"
    if isinstance(error, UnconfirmedError):
        return "unconfirmed"
    return "connection" if isinstance(error, (RedisConnectionError, OSError)) else "refused"


class _WritesRefused(StoreUnavailable):
    """Redis answers, but takes no writes."""


def _number(text: bytes) -> int | None:
    """None for a record that is no session's."""
    return int(text) if text.isdigit() and len(text) <= 16 else None


def _log(
    event: str,
    ID_Sesion: int | None,
    ID_Usuario: int | None,
    fingerprint: str,
    reason: str | None = None,
) -> None:
    """What became of a session."""
    why = f": {reason}" if reason else ""
    logger.info(
        "%s session %s of user %s, ses_#%s%s",
        *(event, ID_Sesion, ID_Usuario, fingerprint, why),
        extra={
            "event": event,
            "ID_Sesion": ID_Sesion,
            "ID_Usuario": ID_Usuario,
            "token": f"ses_#{fingerprint}",
        }
        | ({"reason": reason} if reason else {}),
    )


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    """What Redis and the way to it raise, as the one error that callers know."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(str(error) or type(error).__name__) from error


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """Whatever answers there is no Redis with our scripts, when its replies do not fit them."""
    try:
        yield
    except MISFITS as error:
        raise StoreUnavailable("a reply that no script of ours gives") from error


def _ended(reply: Any) -> list[tuple[str, int | None, int | None]]:
    """The sessions that a script has ended (delete() in lua/session.lua): digest, ID and user."""
    return [(digest.decode(), _number(id_), _number(usuario)) for digest, id_, usuario in reply]


def _session(
    token: str, reply: list[Any] | bytes | None, fingerprint: str | None = None
) -> Sesion | None:
    """The session of a script's reply (read() in lua/session.lua). A record that is none is an
    error of its own: logged, by the token's fingerprint, and as good as absent."""
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
        name = fingerprint or tokens.fingerprint(token)
        logger.error("bad record of session %s: %s", name, error)
        return None
