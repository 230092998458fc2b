"""The session store on Redis: find, create, update, list and end sessions.

Each operation is one atomic script on one hash slot (lua/); lua/session.lua says what each key
holds. An absent session is a value; only a failure of Redis raises.
"""

import asyncio
import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, Self

from sesiones import tokens
from sesiones.metrics import CHECKS, Metrics
from sesiones.policy import SessionPolicy
from sesiones.redis_client import Commands, connect
from sesiones.sesion import (
    NO_LOGIN,
    BadDates,
    Immutable,
    Login,
    Refusal,
    Sesion,
    UserSession,
    valid_device,
    valid_integer,
)
from sesiones.settings import Settings
from sesiones.store.checks import Answer, Submit
from sesiones.store.keys import Keys
from sesiones.store.loop_state import LoopState, Shared, open_loop
from sesiones.store.near_cache import InvalidationTable, NearCache
from sesiones.store.operators import OperatorTools
from sesiones.store.timings import Timings
from sesiones.store.tombstones import Tombstones
from sesiones.tasks import PerLoop


class SessionStore:
    """Sessions in Redis.

    Every method raises StoreUnavailable when Redis does not answer within ``timeout_seconds``
    or refuses; and before anything is sent, TypeError or ValueError for a field that the API would
    refuse (sesion.py). Anything that is not a well-formed token is the token of no session, and
    Redis is not asked for it.

    ``policy``: how long sessions live, and how many a user may have. ``wait_replicas``: how many
    replicas must have what a method wrote before it returns, within 0.1 s (or two fifths of
    ``timeout_seconds``, if that is less); else it raises StoreUnavailable. ``why_seconds``: for how
    long `sesiones why` can tell of a session that has ended or expired.

    A store may be used in any number of event loops and threads. Each loop has connections of its
    own, which are closed when the loop ends (asyncio.run() does that) or by aclose() in it.
    """

    def __init__(
        self,
        connect_commands: Callable[[], Commands],
        policy: SessionPolicy,
        *,
        key_prefix: str,
        timeout_seconds: float,
        wait_replicas: int = 0,
        cache_seconds: int = 0,
        why_seconds: int = 0,
        table: InvalidationTable | None = None,
        metrics: Metrics | None = None,
        actor: str = "SessionStore",
    ) -> None:
        """``connect_commands``: makes the commands of an event loop, without I/O. ``table``: the
        one that the processes of a service share. ``actor``: who asks for what needs no token, in
        the log and for `sesiones why`."""
        self.metrics = metrics or Metrics()
        self._policy = policy
        self._keys = Keys(key_prefix)
        self._timings = Timings(self.metrics)
        self._tombstones = Tombstones(self._last_answered_sent_at)
        shared = Shared(
            connect_commands,
            policy,
            self._keys,
            self._tombstones,
            self._timings,
            self.metrics,
            table or (InvalidationTable() if cache_seconds else None),
            timeout_seconds=timeout_seconds,
            wait_replicas=wait_replicas,
            cache_seconds=cache_seconds,
            why_seconds=why_seconds,
            actor=actor,
        )
        self._loops = PerLoop(partial(open_loop, shared), self._close_loop)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        key_prefix: str = "sesiones",
        idle_seconds: int = SessionPolicy.idle_seconds,
        max_seconds: int = SessionPolicy.max_seconds,
        touch_seconds: int = SessionPolicy.touch_seconds,
        max_per_user: int = SessionPolicy.max_per_user,
        at_limit: Literal["end", "refuse"] = SessionPolicy.at_limit,
        timeout_seconds: float = 0.25,
        redis_ca_file: str | None = None,
        wait_replicas: int = 0,
        cache_seconds: int = 0,
        why_seconds: int = 0,
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
            at_limit=at_limit,
            redis_timeout=timeout_seconds,
            redis_ca_file=redis_ca_file,
            wait_replicas=wait_replicas,
            cache_seconds=cache_seconds,
            why_seconds=why_seconds,
        )
        return cls(
            partial(connect, url, timeout_seconds, redis_ca_file),
            SessionPolicy(idle_seconds, max_seconds, touch_seconds, max_per_user, at_limit),
            key_prefix=key_prefix,
            timeout_seconds=timeout_seconds,
            wait_replicas=wait_replicas,
            cache_seconds=cache_seconds,
            why_seconds=why_seconds,
            metrics=metrics,
        )

    async def find(self, token: str, *, fresh: bool = False, slide: bool = True) -> Sesion | None:
        """The live and active session of the token, slid when due; else None. ``fresh``: Redis is
        asked even if the near-cache has the answer. Without ``slide``, this is no use of the
        session."""
        valid = tokens.parse(token)
        if valid is None:
            self.metrics.add(CHECKS, "missing")
            return None
        if not fresh and (cache := self.near_cache()) is not None:
            entry = cache.get(valid)
            if entry is not None:
                self.metrics.found_in_memory()
                return entry.sesion
        future: asyncio.Future[Sesion | None] = asyncio.get_running_loop().create_future()

        def done(answer: Answer) -> None:
            if future.done():  # the caller was cancelled
                return
            if isinstance(answer, Exception):
                # Of the whole batch. Raised by several callers, one exception would get a traceback
                # with the frames of all of them.
                own = copy.copy(answer)
                own.__cause__ = answer.__cause__
                future.set_exception(own)
            else:
                future.set_result(answer)

        self.checker(slide=slide)(valid, done)
        return await future

    def checker(self, *, slide: bool = True) -> Submit:
        """find() without a task, for the running event loop alone: asks for a well-formed token's
        session, and calls the second argument with what find() would return or raise. It does not
        look into the near-cache."""
        return self._loops.get().checks.submitter(slide=slide)

    def near_cache(self) -> NearCache | None:
        """The cache of the running event loop; None where it is off."""
        return self._loops.get().cache

    async def create(self, ID_Usuario: int, Dispositivo: str, login: Login = NO_LOGIN) -> Sesion:
        """A new session, and what else the login asks for, all at once.

        A user at the limit loses the session that expires first. Where the policy refuses one more
        instead, this raises LimitReached, and nothing has ended. Raises ValueError for what the
        policy does not allow.
        """
        user = valid_integer("ID_Usuario", ID_Usuario)
        return await self._create(user, valid_device(Dispositivo), tokens.make(user), login)

    async def _create(
        self, ID_Usuario: int, Dispositivo: str, token: str, login: Login = NO_LOGIN
    ) -> Sesion:
        """The session of a token of the user; where there is one already, as it is."""
        if not isinstance(login, Login):
            raise TypeError("the login must be a Login")
        resolved = login.resolved(self._policy)
        with self._timings.operation("create", ID_Usuario):
            writes = self._loops.get().writes
            return await writes.create(ID_Usuario, Dispositivo, resolved, token)

    async def update(self, given: Sesion) -> Sesion | Immutable | BadDates | None:
        """Update the live session of the given object's token, active or not, and return it as
        it now stands; None when there is none."""
        if not isinstance(given, Sesion):
            raise TypeError("the session must be a Sesion")
        valid = given.validated()
        if not tokens.is_well_formed(valid.Token_Sesion):
            return None
        with self._timings.operation("update", valid.ID_Usuario):
            return await self._loops.get().writes.update(valid)

    async def end(self, caller: str, designated: str) -> int | Refusal:
        """End the designated session, of the same user as the caller's: how many ended, 0 or 1.

        Never tried twice: a caller that lost the reply asks again.
        """
        with self._timings.operation("logout"):
            return await self._loops.get().writes.end(caller, designated)

    async def end_all(self, caller: str, designated: str) -> int | Refusal:
        """End every live session of the caller's user: how many ended. Never tried twice."""
        with self._timings.operation("logout_all"):
            return await self._loops.get().writes.end_all(caller, designated)

    async def end_others(self, caller: str) -> int | Refusal:
        """End every live session of the caller's user but the caller's: how many ended. A use of
        the caller's session. Never tried twice."""
        sesion = await self.find(caller)
        return Refusal.UNAUTHENTICATED if sesion is None else await self.end_others_of(sesion)

    async def end_others_of(self, caller: Sesion) -> int | Refusal:
        """end_others() for the session that find() has returned."""
        with self._timings.operation("end_others"):
            return await self._loops.get().writes.end_others(caller.Token_Sesion)

    async def end_one(self, caller: str, ID_Sesion: int) -> int | Refusal:
        """End the session of that number, if it is a live one of the caller's user: how many ended,
        0 or 1. A use of the caller's session. Never tried twice."""
        which = valid_integer("ID_Sesion", ID_Sesion)
        sesion = await self.find(caller)
        return Refusal.UNAUTHENTICATED if sesion is None else await self.end_one_of(sesion, which)

    async def end_one_of(self, caller: Sesion, ID_Sesion: int) -> int | Refusal:
        """end_one() for the session that find() has returned."""
        with self._timings.operation("end_one"):
            return await self._loops.get().writes.end_one(caller, ID_Sesion)

    async def revoke(self, token: str) -> None:
        """End the session of the token, active or not, if one lives. Never tried twice."""
        valid = tokens.parse(token)
        if valid is not None:
            with self._timings.operation("revoke"):
                await self._loops.get().writes.revoke(valid, "logout")

    async def list_sessions(self, caller: str) -> list[UserSession] | None:
        """The live sessions of the caller's user, active or not, the caller's with Actual: the most
        recently used first, then the newest first. None when the caller's own is not live and
        active. A use of the caller's session."""
        sesion = await self.find(caller)
        return None if sesion is None else await self.list_sessions_of(sesion)

    async def list_sessions_of(self, caller: Sesion) -> list[UserSession] | None:
        """list_sessions() for the session that find() has returned."""
        sessions = await self.sessions(caller.ID_Usuario)
        marked = [each._replace(Actual=each.ID_Sesion == caller.ID_Sesion) for each in sessions]
        return marked if any(each.Actual and each.Estado_Sesion for each in marked) else None

    async def sessions(self, ID_Usuario: int, *, deep: bool = False) -> list[UserSession]:
        """The user's live sessions, active or not: the most recently used first, then the newest
        first.

        ``deep``: those too that the user's index does not name, from a look at every key.
        """
        user = valid_integer("ID_Usuario", ID_Usuario)
        with self._timings.operation("list", user):
            return await self._loops.get().operators.sessions(user, deep=deep)

    async def end_user(
        self, ID_Usuario: int, ID_Sesion: int | None = None, *, deep: bool = False
    ) -> int:
        """End one session of the user, or all, without a token: how many ended.

        ``deep``: those too that the user's index does not name, from a look at every key.
        """
        user = valid_integer("ID_Usuario", ID_Usuario)
        which = None if ID_Sesion is None else valid_integer("ID_Sesion", ID_Sesion)
        with self._timings.operation("end_user", user):
            return await self._loops.get().operators.end_user(user, which, deep=deep)

    def operators(self) -> OperatorTools:
        """The operations that look at the sessions of all users, on the running event loop. Each
        raises StoreUnavailable."""
        return self._loops.get().operators

    async def probe(self, seconds: float) -> None:
        """Whether Redis takes writes and has every script, within the time: raises
        StoreUnavailable when it does not. Loads missing scripts, and writes nothing.

        One master of a Cluster is enough: with it this node serves a part of the users.
        """
        await self._loops.get().runner.probe(self._keys.index(0), seconds)

    async def aclose(self) -> None:
        """Close the running event loop's connections to Redis, for good."""
        await self._loops.get().aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _close_loop(self, loop: LoopState) -> None:
        await loop.aclose()
        # The next loop connects anew, perhaps to a master that lacks recent deletions.
        self._tombstones.queue_replay(tokens.BUCKETS)

    def _last_answered_sent_at(self, bucket: str) -> float:
        """Of the event loop whose connections had their last answer the longest ago."""
        moments = [loop.last_answered_sent_at(bucket) for loop in self._loops.existing()]
        return min(moments, default=time.monotonic())
