"""The session store on Redis: find, create, update, end, end_all.

Each operation is one atomic script on one hash slot (lua/); lua/session.lua says what lies where.
An absent session is a value; only Redis failing raises.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Self

from redis.exceptions import NoPermissionError, ReadOnlyError

from sesiones import tokens
from sesiones.metrics import CHECKS, Metrics
from sesiones.redis_client import Commands, Execute, connect
from sesiones.sesion import (
    BadDates,
    Immutable,
    Refusal,
    Sesion,
    StoreUnavailable,
    valid_device,
    valid_integer,
)
from sesiones.settings import Settings
from sesiones.store import scripts
from sesiones.store.checks import Answer, CheckQueue, Submit
from sesiones.store.events import SessionEvents
from sesiones.store.keys import SESSION, Keys
from sesiones.store.records import session_of
from sesiones.store.replay import Replay
from sesiones.store.scripts import Outages, Script, ScriptRunner, unavailable
from sesiones.store.tombstones import Tombstones
from sesiones.tasks import Deadline, PerLoop

logger = logging.getLogger("sesiones.store")

SLOW_SECONDS = 0.1
"""What takes longer is logged."""
_ABSENT = -2
"""EXPIRETIME's reply for a key that is not there."""
_COUNTERS_AT_ONCE = 256
"""Counters that was_used() asks for at a time."""
_DIGEST = re.compile(rb"[A-Za-z0-9_-]{%d}" % len(tokens.digest(""))).fullmatch
"""Of a session's key. No token leads to any other."""


class _LoopState:
    """What belongs to one event loop: the connections, and all that waits for them."""

    def __init__(
        self, runner: ScriptRunner, events: SessionEvents, checks: CheckQueue, replay: Replay
    ) -> None:
        self.runner = runner
        self.events = events
        self.checks = checks
        self.replay = replay
        self._every_commands = {runner.commands, runner.writes}
        for commands in self._every_commands:
            commands.on_owner_change(replay.owner_changed)

    def answered_at(self, tag: str) -> float:
        return min(commands.answered_at(tag) for commands in self._every_commands)

    async def aclose(self) -> None:
        await self.replay.aclose()
        await self.runner.aclose()
        await self.checks.aclose()
        await asyncio.sleep(0)  # until the transports that were aborted are closed
        self.events.flush()


class SessionStore:
    """Sessions in Redis.

    Every method raises StoreUnavailable when Redis does not answer within ``timeout_seconds``
    or refuses; and before anything is sent, TypeError or ValueError for a field that the API would
    refuse (sesion.py). Anything that is not a well-formed token is the token of no session, and
    Redis is not asked for it.

    ``idle_seconds``: a new session's window; ``max_seconds``: the longest life; ``touch_seconds``:
    how old Ultima_Actividad must be before a check slides it; ``max_per_user``: sessions a user
    may have. ``wait_replicas``: how many must have what a method wrote before it returns, within
    0.1 s (or two fifths of ``timeout_seconds``, if that is less); else it raises StoreUnavailable.

    A store may be used in any number of event loops and threads. Each loop has connections of its
    own, which are closed when the loop ends (asyncio.run() does that) or by aclose() in it.
    """

    def __init__(
        self,
        connect_commands: Callable[[], Commands],
        *,
        key_prefix: str,
        idle_seconds: int,
        max_seconds: int,
        touch_seconds: int,
        max_per_user: int,
        timeout_seconds: float,
        wait_replicas: int = 0,
        metrics: Metrics | None = None,
    ) -> None:
        """``connect_commands``: makes the commands of an event loop, without I/O."""
        self.metrics = metrics or Metrics()
        self._connect = connect_commands
        self._wait_replicas = wait_replicas
        self._keys = Keys(key_prefix)
        self._idle_seconds = idle_seconds
        self._max_seconds = max_seconds
        self._touch_seconds = touch_seconds
        self._max_per_user = max_per_user
        self._timeout_seconds = timeout_seconds
        self._outages = Outages()
        self._slow_at = 0.0
        self._tombstones = Tombstones(self._answered_at)
        self._loops = PerLoop(self._open_loop, self._close_loop)

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
        it is asked. The defaults are the service's. Raises ValueError for what its settings
        refuse."""
        Settings.check(
            redis_url=url,
            key_prefix=key_prefix,
            idle_seconds=idle_seconds,
            max_seconds=max_seconds,
            touch_seconds=touch_seconds,
            max_per_user=max_per_user,
            redis_timeout=timeout_seconds,
            wait_replicas=wait_replicas,
        )
        return cls(
            partial(connect, url, timeout_seconds),
            key_prefix=key_prefix,
            idle_seconds=idle_seconds,
            max_seconds=max_seconds,
            touch_seconds=touch_seconds,
            max_per_user=max_per_user,
            timeout_seconds=timeout_seconds,
            wait_replicas=wait_replicas,
            metrics=metrics,
        )

    def checker(self) -> Submit:
        """find() without a task, for the running event loop alone: asks for a well-formed token's
        session, and calls the second argument with what find() would return or raise."""
        return self._loops.get().checks.submit

    async def find(self, token: str) -> Sesion | None:
        """The live and active session of the token, slid when due; else None."""
        valid = tokens.parse(token)
        if valid is None:
            self.metrics.add(CHECKS, "missing")
            return None
        future: asyncio.Future[Sesion | None] = asyncio.get_running_loop().create_future()

        def done(answer: Answer) -> None:
            if future.done():  # the caller was cancelled
                return
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        self.checker()(valid, done)
        return await future

    async def create(self, ID_Usuario: int, Dispositivo: str) -> Sesion:
        """A new session. A user at the limit loses the one that expires first."""
        ID_Usuario = valid_integer("ID_Usuario", ID_Usuario)
        # The token is made before the first try: a second one finds its session.
        return await self._create(ID_Usuario, valid_device(Dispositivo), tokens.make(ID_Usuario))

    async def _create(self, ID_Usuario: int, Dispositivo: str, token: str) -> Sesion:
        """The session of a token of the user; where there is one already, as it is."""
        key, bucket = self._keys.session(token), tokens.bucket(token)
        loop = self._loops.get()

        def on_reply(reply: Any) -> None:
            # Where the session of a first try has ended meanwhile, the second one has made it anew.
            self._tombstones.discard(key)
            loop.events.ended("limit", self._keys.base(bucket), reply[2])

        with self._operation("create", ID_Usuario), unavailable():
            text, expiry, _ = await loop.runner.write(
                scripts.CREATE,
                [key, self._keys.index(ID_Usuario), self._keys.counter(bucket)],
                tokens.bucket_number(bucket),
                ID_Usuario,
                Dispositivo,
                self._idle_seconds,
                self._max_seconds,
                self._max_per_user,
                on_reply=on_reply,
            )
            sesion = session_of(token, text, expiry)
        if sesion is None:
            raise StoreUnavailable("the new session could not be read back")
        loop.events.created(sesion.ID_Sesion, ID_Usuario, token)
        return sesion

    async def update(self, given: Sesion) -> Sesion | Immutable | BadDates | None:
        """Update the live session of the given object's token, active or not, and return it as
        it now stands; None when there is none."""
        if not isinstance(given, Sesion):
            raise TypeError("the session must be a Sesion")
        given = given.validated()
        if not tokens.is_well_formed(given.Token_Sesion):
            return None
        key = self._keys.session(given.Token_Sesion)
        if key in self._tombstones:
            return None
        loop = self._loops.get()
        base = self._keys.base(tokens.bucket(given.Token_Sesion))

        def on_reply(reply: Any) -> None:
            if reply[0] == b"unindexed":
                loop.events.ended("unindexed", base, reply[1])

        with self._operation("update", given.ID_Usuario), unavailable():
            outcome, *details = await loop.runner.write(
                scripts.UPDATE,
                [key],
                given.ID_Sesion,
                given.ID_Usuario,
                given.Fecha_Inicio,
                given.Fecha_Expiracion,
                given.Estado_Sesion,
                given.Ultima_Actividad,
                given.Dispositivo,
                self._max_seconds,
                on_reply=on_reply,
            )
            match outcome:
                case b"immutable":
                    return Immutable(tuple(field.decode() for field in details))
                case b"dates":
                    return BadDates(details[0].decode())
                case b"unindexed":
                    return None
                case b"ok" | b"absent":
                    return session_of(given.Token_Sesion, *details)
            raise ValueError(outcome)

    async def end(self, caller: str, designated: str) -> int | Refusal:
        """End the designated session, of the same user as the caller's: how many ended, 0 or 1.

        Never tried twice: a caller that lost the reply asks again.
        """
        with self._operation("logout"):
            return await self._end(scripts.END, "logout", caller, designated)

    async def end_all(self, caller: str, designated: str) -> int | Refusal:
        """End every live session of the caller's user: how many ended. Never tried twice."""
        with self._operation("logout_all"):
            return await self._end(scripts.END_ALL, "logout_all", caller, designated)

    async def sessions(self, ID_Usuario: int, *, deep: bool = False) -> list[Sesion]:
        """The user's live sessions, active or not. Redis has no tokens: Token_Sesion is the name
        that the log gives it, which is of no use to anyone else.

        ``deep``: those too that the user's index does not name, from a look at every key.
        """
        ID_Usuario = valid_integer("ID_Usuario", ID_Usuario)
        sesiones = []
        for digest, text, expiry, _ in await self._sessions_of(ID_Usuario, deep):
            with unavailable():
                fingerprint = tokens.fingerprint_of_digest(digest)
                if sesion := session_of(f"ses_#{fingerprint}", text, expiry, fingerprint):
                    sesiones.append(sesion)
        return sesiones

    async def end_user(
        self, ID_Usuario: int, ID_Sesion: int | None = None, *, deep: bool = False
    ) -> int:
        """End one session of the user, or all, for an operator: how many ended.

        ``deep``: those too that the user's index does not name, from a look at every key.
        """
        ID_Usuario = valid_integer("ID_Usuario", ID_Usuario)
        which = "" if ID_Sesion is None else valid_integer("ID_Sesion", ID_Sesion)
        sessions = await self._sessions_of(ID_Usuario, deep) if deep else []
        loop = self._loops.get()
        base = self._keys.base(tokens.user_bucket(ID_Usuario))
        with unavailable():
            ended = await loop.runner.write(
                scripts.END_USER,
                [self._keys.index(ID_Usuario)],
                which,
                *(digest for digest, *_, is_indexed in sessions if not is_indexed),
                tries=1,
                on_reply=lambda ended: loop.events.ended("operator", base, ended),
            )
            return len(ended)

    async def audit(self) -> AsyncIterator[tuple[int, list[tuple[str, str]]]]:
        """Look through every key of this prefix, some at a time: how many those were, and the
        faults among them, as the key and what is wrong with it.

        What is there all the while is seen; of what comes or goes, some.
        """
        with unavailable():
            async for execute, keys in self._scan(self._keys.pattern):
                faults = await scripts.call(execute, scripts.AUDIT, [], *keys) if keys else []
                yield (
                    len(keys),
                    [(key.decode(errors="replace"), what.decode()) for key, what in faults],
                )

    async def was_used(self) -> bool:
        """Whether there is or was a session under this prefix.

        A bucket's counter never expires, so those are asked for first. Only an eviction loses them:
        then any key will do, if SCAN is allowed.
        """
        commands = self._loops.get().runner.commands
        counters = [self._keys.counter(bucket) for bucket in tokens.buckets()]
        with unavailable():
            for start in range(0, len(counters), _COUNTERS_AT_ONCE):
                asked = (
                    commands.execute("EXPIRETIME", key, keys=[key], reads=True)
                    for key in counters[start : start + _COUNTERS_AT_ONCE]
                )
                if any(expiry != _ABSENT for expiry in await asyncio.gather(*asked)):
                    return True
            with contextlib.suppress(NoPermissionError):
                async with contextlib.aclosing(self._scan(self._keys.pattern)) as found:
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
        with unavailable():
            async with Deadline(deadline):
                masters = await self._loops.get().runner.commands.masters()
        probes = (self._probe(execute, deadline) for execute in masters.values())
        failures = await asyncio.gather(*probes, return_exceptions=True)
        if None not in failures:
            raise next((f for f in failures if f), StoreUnavailable("no master is known"))

    async def aclose(self) -> None:
        """Close the running event loop's connections to Redis, for good."""
        await self._loops.get().aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _probe(self, execute: Execute, deadline: float) -> None:
        with unavailable():
            async with Deadline(deadline):
                shas = [script.sha for script in scripts.SERVICE_SCRIPTS]
                for script, loaded in zip(
                    scripts.SERVICE_SCRIPTS,
                    await execute("SCRIPT", "EXISTS", *shas),
                    strict=True,
                ):
                    if not loaded:
                        await execute("SCRIPT", "LOAD", script.source)
                try:
                    await scripts.call(execute, scripts.PROBE, [], self._keys.index(0))
                except ReadOnlyError:
                    self._loops.get().runner.reset()  # demoted: the next one finds the master
                    raise

    async def _sessions_of(self, ID_Usuario: int, deep: bool) -> list[tuple[str, Any, Any, bool]]:
        """The user's live sessions: digest, what fetch() in lua/session.lua gives, and whether the
        user's index names it."""
        digests: set[bytes] = set()
        if deep:
            base = f"{self._keys.base(tokens.user_bucket(ID_Usuario))}{SESSION}"
            with unavailable():
                async for _, keys in self._scan(f"{base}*"):
                    digests |= {key.removeprefix(base.encode()) for key in keys}
        index = self._keys.index(ID_Usuario)
        runner = self._loops.get().runner
        found = await runner.run(scripts.LIST, [index], *filter(_DIGEST, digests))
        with unavailable():
            sessions = [(digest.decode(), *record, bool(known)) for digest, *record, known in found]
        if missing := sum(not is_indexed for *_, is_indexed in sessions):
            logger.warning(
                "the index of user %s is incomplete: it lacks %d of %d live sessions",
                *(ID_Usuario, missing, len(sessions)),
                extra={"ID_Usuario": ID_Usuario},
            )
        return sessions

    async def _scan(self, pattern: str) -> AsyncGenerator[tuple[Execute, list[bytes]], None]:
        """The keys of the pattern, some at a time, and execute() on the master that has them."""
        for execute in (await self._loops.get().runner.commands.masters()).values():
            cursor = b"0"
            while True:
                cursor, keys = await execute("SCAN", cursor, "MATCH", pattern, "COUNT", 500)
                yield execute, keys
                if int(cursor) == 0:
                    break

    def _open_loop(self) -> _LoopState:
        commands = self._connect()
        runner = ScriptRunner(
            commands,
            self._connect() if self._wait_replicas else commands,
            self._connect(),
            wait_replicas=self._wait_replicas,
            timeout_seconds=self._timeout_seconds,
            outages=self._outages,
            metrics=self.metrics,
        )
        events = SessionEvents(self._tombstones, self.metrics)
        checks = CheckQueue(
            runner,
            self._keys,
            self._tombstones,
            events,
            self.metrics,
            touch_seconds=self._touch_seconds,
            max_seconds=self._max_seconds,
            timeout_seconds=self._timeout_seconds,
            observe=self._checked,
        )
        loop = _LoopState(runner, events, checks, Replay(runner, self._tombstones, events))
        # This loop's master may lack recent deletions, and a loop that was closed by hand has not
        # queued its own. PerLoop still has the value of that one: answered_at() counts it.
        loop.replay.owner_changed(lambda _: True)
        return loop

    async def _close_loop(self, loop: _LoopState) -> None:
        await loop.aclose()
        # The next loop connects anew, perhaps to a master that lacks recent deletions.
        self._tombstones.queue_replay(lambda _: True)

    def _answered_at(self, tag: str) -> float:
        """Of the loop whose connections were answered least lately."""
        moments = [loop.answered_at(tag) for loop in self._loops.existing()]
        return min(moments, default=time.monotonic())

    async def _end(
        self, script: Script, reason: str, caller: str, designated: str
    ) -> int | Refusal:
        loop = self._loops.get()
        valid_caller, valid_designated = tokens.parse(caller), tokens.parse(designated)
        if valid_caller is None:
            return Refusal.UNAUTHENTICATED
        caller_key, designated_key = self._keys.session(valid_caller), None
        if caller_key in self._tombstones:
            return Refusal.UNAUTHENTICATED
        bucket = tokens.bucket(valid_caller)
        if valid_designated is not None:
            if tokens.bucket(valid_designated) == bucket:
                designated_key = self._keys.session(valid_designated)
            elif await loop.checks.peek(valid_designated) is not None:
                # A bucket is a function of the user: another bucket's session is another user's.
                return Refusal.FORBIDDEN
        if designated_key is None:
            if script is scripts.END:
                return 0
            designated_key = caller_key
        base = self._keys.base(bucket)

        def on_reply(ended: Any) -> None:
            if not isinstance(ended, int):
                loop.events.ended(reason, base, ended)

        with unavailable():
            ended = await loop.runner.write(
                script, [caller_key, designated_key], tries=1, on_reply=on_reply
            )
            return Refusal(ended) if isinstance(ended, int) else len(ended)

    def _checked(self, asked: list[float], answers: Sequence[Answer]) -> None:
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


__all__ = ["BadDates", "Immutable", "Refusal", "SessionStore", "StoreUnavailable"]
