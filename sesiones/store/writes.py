"""The operations that write: create, update, end, end_all, on one event loop's connections.

What a script has ended becomes tombstones in the callback of its reply. A connection calls it in
the same turn of the event loop in which it reads the reply, whether the caller still waits, was
cancelled or has run out of time, and before WAIT has confirmed the write. So the tombstones are
there when the connection is lost a moment later, and its loss queues them for replay.
"""

from typing import Any

from sesiones import tokens
from sesiones.policy import SessionPolicy
from sesiones.sesion import BadDates, Immutable, Refusal, Sesion, StoreUnavailable
from sesiones.store import scripts
from sesiones.store.checks import CheckQueue
from sesiones.store.events import SessionEvents
from sesiones.store.keys import Keys, base_of
from sesiones.store.records import session_of
from sesiones.store.runner import ScriptRunner, unavailable
from sesiones.store.scripts import Script
from sesiones.store.tombstones import Tombstones


class SessionWrites:
    """The writes of one event loop. Each raises StoreUnavailable."""

    def __init__(
        self,
        runner: ScriptRunner,
        keys: Keys,
        policy: SessionPolicy,
        tombstones: Tombstones,
        events: SessionEvents,
        checks: CheckQueue,
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._policy = policy
        self._tombstones = tombstones
        self._events = events
        self._checks = checks

    async def create(self, ID_Usuario: int, Dispositivo: str, token: str) -> Sesion:
        """The session of a new token of the user. A second try finds the session of the first."""
        key, bucket = self._keys.session(token), tokens.bucket(token)

        def on_reply(reply: Any) -> Sesion | None:
            text, expiry, ended = reply
            # Where the session of a first try has ended meanwhile, the second one has made it anew.
            self._tombstones.discard(key)
            self._events.ended("limit", base_of(key), ended)
            return session_of(token, text, expiry)

        with unavailable():
            sesion: Sesion | None = await self._runner.write(
                scripts.CREATE,
                [key, self._keys.index(ID_Usuario), self._keys.counter(bucket)],
                tokens.bucket_number(bucket),
                ID_Usuario,
                Dispositivo,
                self._policy.idle_seconds,
                self._policy.max_seconds,
                self._policy.max_per_user,
                on_reply=on_reply,
            )
        if sesion is None:
            raise StoreUnavailable("the new session could not be read back")
        self._events.created(sesion.ID_Sesion, ID_Usuario, token)
        return sesion

    async def update(self, given: Sesion) -> Sesion | Immutable | BadDates | None:
        """The live session of the object's token as it now stands; None when there is none."""
        token = given.Token_Sesion
        key = self._keys.session(token)
        if key in self._tombstones:
            return None

        def on_reply(reply: Any) -> Sesion | Immutable | BadDates | None:
            match reply:
                case [b"ok", text, expiry]:
                    return session_of(token, text, expiry)
                case [b"absent", *reason]:
                    return session_of(token, *reason)
                case [b"unindexed", ended]:
                    self._events.ended("unindexed", base_of(key), ended)
                    return None
                case [b"immutable", *fields]:
                    return Immutable(tuple(field.decode() for field in fields))
                case [b"dates", reason]:
                    return BadDates(reason.decode())
            raise ValueError(reply)

        with unavailable():
            updated: Sesion | Immutable | BadDates | None = await self._runner.write(
                scripts.UPDATE,
                [key],
                given.ID_Sesion,
                given.ID_Usuario,
                given.Fecha_Inicio,
                given.Fecha_Expiracion,
                given.Estado_Sesion,
                given.Ultima_Actividad,
                given.Dispositivo,
                self._policy.max_seconds,
                on_reply=on_reply,
            )
        return updated

    async def end(self, caller: str, designated: str) -> int | Refusal:
        """End the designated session of the caller's user. Return how many ended, 0 or 1."""
        keys = await self._keys_to_end(caller, designated)
        if isinstance(keys, Refusal):
            return keys
        caller_key, designated_key = keys
        if designated_key is None:
            return 0
        return await self._end(scripts.END, "logout", caller_key, designated_key)

    async def end_all(self, caller: str, designated: str) -> int | Refusal:
        """End every live session of the caller's user. Return how many ended."""
        keys = await self._keys_to_end(caller, designated)
        if isinstance(keys, Refusal):
            return keys
        caller_key, designated_key = keys
        return await self._end(
            scripts.END_ALL, "logout_all", caller_key, designated_key or caller_key
        )

    async def _keys_to_end(self, caller: str, designated: str) -> tuple[str, str | None] | Refusal:
        """The keys of the two sessions, in one slot. The second is None when it cannot be a session
        of the caller's user."""
        valid_caller, valid_designated = tokens.parse(caller), tokens.parse(designated)
        if valid_caller is None:
            return Refusal.UNAUTHENTICATED
        caller_key = self._keys.session(valid_caller)
        if caller_key in self._tombstones:
            return Refusal.UNAUTHENTICATED
        if valid_designated is None:
            return caller_key, None
        if tokens.bucket(valid_designated) == tokens.bucket(valid_caller):
            return caller_key, self._keys.session(valid_designated)
        if await self._checks.peek(valid_designated) is not None:
            # A bucket is a function of the user: another bucket's session is another user's.
            return Refusal.FORBIDDEN
        return caller_key, None

    async def _end(
        self, script: Script, reason: str, caller_key: str, designated_key: str
    ) -> int | Refusal:
        """``reason``: why the sessions ended, for the log and the metric. Never tried twice."""

        def on_reply(reply: Any) -> int | Refusal:
            if isinstance(reply, int):
                return Refusal(reply)
            self._events.ended(reason, base_of(caller_key), reply)
            return len(reply)

        with unavailable():
            outcome: int | Refusal = await self._runner.write(
                script, [caller_key, designated_key], on_reply=on_reply, tries=1
            )
        return outcome
