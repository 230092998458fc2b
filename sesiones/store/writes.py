"""The operations that write, on one event loop's connections.

What a script has ended becomes tombstones in the callback of its reply. A connection calls it in
the same turn of the event loop in which it reads the reply, whether the caller still waits, was
cancelled or has run out of time, and before WAIT has confirmed the write. So the tombstones are
there when the connection is lost a moment later, and its loss queues them for replay.
"""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

from sesiones import tokens
from sesiones.policy import SessionPolicy
from sesiones.redis_client import Argument
from sesiones.sesion import (
    BadDates,
    Immutable,
    LimitReached,
    Login,
    Refusal,
    Sesion,
    StoreUnavailable,
    UserSession,
)
from sesiones.store import scripts
from sesiones.store.checks import CheckQueue
from sesiones.store.events import SessionEvents
from sesiones.store.keys import Keys, base_of
from sesiones.store.records import session_of, user_sessions_of
from sesiones.store.runner import ScriptRunner
from sesiones.store.scripts import Script
from sesiones.store.tombstones import Tombstones


@dataclass(frozen=True, slots=True)
class _Refused:
    """A login beyond the limit."""

    sessions: list[UserSession]
    """The user's live sessions, in the order of a list."""
    left_out: list[str]
    """The keys of those that count and are not in that list."""


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

    async def create(self, ID_Usuario: int, Dispositivo: str, login: Login, token: str) -> Sesion:
        """The session of a new token of the user. A second try finds the session of the first.

        ``login``: as Login.resolved() gives it. Raises LimitReached.
        """
        previous = tokens.parse(login.Token_Anterior)
        elsewhere = None
        if previous is not None and tokens.bucket(previous) != tokens.bucket(token):
            previous, elsewhere = None, previous
        outcome = await self._create(ID_Usuario, Dispositivo, login, token, previous)
        if isinstance(outcome, _Refused) and outcome.left_out:
            # They counted, though no list shows them: they came back after a failover, or are
            # malformed.
            await self._end(scripts.END_AGAIN, "failover", "", outcome.left_out)
            outcome = await self._create(ID_Usuario, Dispositivo, login, token, previous)
        if isinstance(outcome, _Refused):
            raise LimitReached(outcome.sessions)
        if outcome is None:
            raise StoreUnavailable("the new session could not be read back")
        self._events.created(outcome.ID_Sesion, ID_Usuario, token)
        if elsewhere is not None:
            await self._replace_elsewhere(elsewhere, token)
        return outcome

    async def _replace_elsewhere(self, previous: str, token: str) -> None:
        """End the session of a token of another bucket: it is another user's, in another hash slot,
        so that the script of the login cannot end it. It ends after the new one was made, because
        a login that is refused must end nothing. If it cannot end, the new session does."""
        try:
            await self.revoke(previous, "replaced")
        except StoreUnavailable:
            with contextlib.suppress(StoreUnavailable):
                await self.revoke(token, "undone")
            raise

    async def _create(
        self, ID_Usuario: int, Dispositivo: str, login: Login, token: str, previous: str | None
    ) -> Sesion | _Refused | None:
        """``previous``: a token of the same bucket."""
        key, bucket = self._keys.session(token), tokens.bucket(token)
        recorded: set[bytes] = set()
        """Digests of the sessions whose ending is recorded. When a first try has had its reply and
        then no confirmation by replicas, the second one is told of them again."""

        def on_reply(reply: Any) -> Sesion | _Refused | None:
            if reply[0] == b"refused":
                return _Refused(*user_sessions_of(base_of(key), reply[1], self._tombstones))
            text, expiry, *endings = reply
            # Where the session of a first try has ended meanwhile, the second one has made it anew.
            self._tombstones.discard(key)
            for reason, ended in zip(endings[::2], endings[1::2], strict=True):
                new = [entry for entry in ended if entry[0] not in recorded]
                recorded.update(digest for digest, _, _ in new)
                self._events.ended(reason.decode(), base_of(key), new, self._runner.actor)
            return session_of(token, text, expiry)

        life = self._policy.max_seconds if login.Vida_Maxima is None else login.Vida_Maxima
        assert login.Ventana is not None
        assert login.Max_Sesiones is not None
        outcome: Sesion | _Refused | None = await self._runner.write(
            scripts.CREATE,
            [key, self._keys.index(ID_Usuario), self._keys.counter(bucket)],
            tokens.bucket_number(bucket),
            ID_Usuario,
            Dispositivo,
            login.Ventana,
            min(login.Ventana, life),
            "" if login.Vida_Maxima is None else login.Vida_Maxima,
            login.Max_Sesiones,
            self._policy.at_limit,
            "" if previous is None else tokens.digest(previous),
            "" if login.Sustituye is None else login.Sustituye,
            login.Cerrar_Otras,
            math.ceil(self._runner.timeout_seconds) + 1,
            on_reply=on_reply,
        )
        return outcome

    async def update(self, given: Sesion) -> Sesion | Immutable | BadDates | None:
        """The live session of the object's token as it now stands; None when there is none."""
        token = given.Token_Sesion
        key = self._keys.session(token)
        if key in self._tombstones:
            return None

        def on_reply(reply: Any) -> Sesion | Immutable | BadDates | None:
            match reply:
                case [b"ok", text, expiry, *changed]:
                    sesion = session_of(token, text, expiry)
                    if sesion is not None:
                        fields = [field.decode() for field in changed]
                        self._events.updated(sesion, fields, self._runner.actor)
                    return sesion
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
        return await self._end(
            scripts.END, "logout", tokens.masked(caller), [caller_key, designated_key]
        )

    async def end_all(self, caller: str, designated: str) -> int | Refusal:
        """End every live session of the caller's user. Return how many ended."""
        found = await self._keys_to_end(caller, designated)
        if isinstance(found, Refusal):
            return found
        caller_key, designated_key = found
        keys = [caller_key, designated_key or caller_key]
        return await self._end_many("logout_all", caller, keys)

    async def end_others(self, caller: str) -> int | Refusal:
        """End every live session of the caller's user but the caller's. Return how many ended."""
        key = self._keys.session(caller)
        return await self._end_many("others", caller, [key, key])

    async def _end_many(self, reason: str, caller: str, keys: list[str]) -> int | Refusal:
        return await self._end(scripts.END_ALL, reason, tokens.masked(caller), keys, reason)

    async def end_one(self, caller: Sesion, ID_Sesion: int) -> int | Refusal:
        """End a session of the caller's user by its number. Return how many ended, 0 or 1."""
        keys = [self._keys.index(caller.ID_Usuario), self._keys.session(caller.Token_Sesion)]
        actor = tokens.masked(caller.Token_Sesion)
        return await self._end(scripts.END_USER, "id", actor, keys, ID_Sesion)

    async def revoke(self, token: str, reason: str) -> None:
        """End the session of the token, active or not, if one lives."""
        keys = [self._keys.session(token), self._keys.counter(tokens.bucket(token))]
        await self._end(scripts.REVOKE, reason, self._runner.actor, keys, reason)

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
        self, script: Script, reason: str, actor: str, keys: list[str], *arguments: Argument
    ) -> int | Refusal:
        """``reason``: why the sessions ended, for the log and the metric. ``actor``: the name of
        the caller's token, which the script completes, or who asks without a token. Never tried
        twice."""

        def on_reply(reply: Any) -> int | Refusal:
            if isinstance(reply, int):
                return Refusal(reply)
            return self._events.ended_by(reason, base_of(keys[0]), reply)

        outcome: int | Refusal = await self._runner.write(
            script, keys, *arguments, actor=actor, on_reply=on_reply, tries=1
        )
        return outcome
