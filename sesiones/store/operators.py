"""Operations that need no token, for operators: a user's sessions, and all that look through every
key of the prefix."""

import asyncio
import contextlib
import logging
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from redis.exceptions import BusyLoadingError, NoPermissionError, ReadOnlyError, ResponseError

from sesiones import tokens
from sesiones.redis_client import Execute
from sesiones.redis_client.single import UnconfirmedError
from sesiones.sesion import StoreUnavailable, UserSession, valid_integer
from sesiones.store import scripts
from sesiones.store.events import SessionEvents
from sesiones.store.keys import DIGEST_LENGTH, INDEX, SESSION, TRACES, Keys, base_of
from sesiones.store.records import user_session_of, user_sessions_of
from sesiones.store.runner import ScriptRunner, unavailable
from sesiones.store.tombstones import Tombstones
from sesiones.store.traces import Trace, is_live, trace_of

logger = logging.getLogger("sesiones.store")

COUNTERS_AT_ONCE = 256
"""Counters that was_used() asks for at a time."""
_ABSENT = -2
"""EXPIRETIME's reply for a key that does not exist."""
PAUSE_SECONDS_MAX = 0.1
"""The longest wait between two pages of a scan."""
CALLS_AT_ONCE = 16
"""Calls of end_begun() that are in flight at the same time; checks go on beside them."""
_is_digest = re.compile(rb"[A-Za-z0-9_-]{%d}" % DIGEST_LENGTH).fullmatch
"""Whether a session's key may end in this. No token leads to any other key."""


def _fingerprint_of(key: bytes) -> str | None:
    """That of the token whose session the key may be."""
    digest = key[-DIGEST_LENGTH:]
    return tokens.fingerprint_of_digest(digest.decode()) if _is_digest(digest) else None


@dataclass
class Survey:
    """What survey() has counted so far."""

    keys: int = 0
    sessions: int = 0
    active: int = 0
    begun: int = 0
    """Those that began before the given moment; without one, all."""
    oldest: int | None = None
    """When the oldest began."""
    users: int = 0
    """Those whose index names a session that has not expired."""


@dataclass
class Ending:
    """What end_begun() has done so far."""

    keys: int = 0
    sessions: int = 0
    """How many have ended, by the replies that came."""
    unknown: int = 0
    """How many more may have ended: replies about so many keys are lost or still to come."""


def is_outcome_known(error: StoreUnavailable) -> bool:
    """Whether the one try that there was has had its reply (only replicas have not confirmed it)
    or was refused; else the operation may have happened."""
    # To redis-py, a server that is loading is an error of the connection.
    answers = UnconfirmedError, ResponseError, BusyLoadingError
    return isinstance(error.__cause__, answers)


class OperatorTools:
    """The operators' operations on one event loop's connections. Each raises StoreUnavailable."""

    def __init__(
        self, runner: ScriptRunner, keys: Keys, tombstones: Tombstones, events: SessionEvents
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._tombstones = tombstones
        self._events = events

    async def sessions(self, ID_Usuario: int, *, deep: bool) -> list[UserSession]:
        """The user's live sessions, active or not, in the order of a list."""
        digests = await self._digests_of_bucket(ID_Usuario) if deep else set()
        listed = await self._list(ID_Usuario, digests)
        base = self._keys.base(tokens.user_bucket(ID_Usuario))
        with unavailable():
            return user_sessions_of(base, listed, self._tombstones)[0]

    async def end_user(self, ID_Usuario: int, ID_Sesion: int | None, *, deep: bool) -> int:
        """End one session of the user, or all. Return how many ended."""
        listed = []
        if deep:
            listed = await self._list(ID_Usuario, await self._digests_of_bucket(ID_Usuario))
        base = self._keys.base(tokens.user_bucket(ID_Usuario))

        def on_reply(reply: Any) -> int:
            return self._events.ended_by("operator", base, reply)

        with unavailable():
            count: int = await self._runner.write(
                scripts.END_USER,
                [self._keys.index(ID_Usuario)],
                "" if ID_Sesion is None else ID_Sesion,
                *(digest for digest, *_, is_indexed in listed if not is_indexed),
                on_reply=on_reply,
                tries=1,
            )
        return count

    async def named(self, fingerprint: str) -> list[UserSession]:
        """The live sessions, of any users, whose tokens have the fingerprint, from a look at every
        key. Usually that is one session, or none."""
        sessions: dict[bytes, UserSession] = {}  # SCAN may name a key twice
        pattern = self._keys.sessions_of(tokens.digest_start(fingerprint))
        with unavailable():
            await self._require_masters()
            async for execute, keys in self._scan(pattern):
                named = [key for key in keys if _fingerprint_of(key) == fingerprint]
                if named:
                    read = await self._runner.run(scripts.PEEK, [], "", "", *named, execute=execute)
                    for key, text, expiry in zip(named, read[::2], read[1::2], strict=False):
                        digest = key[-DIGEST_LENGTH:].decode()
                        sesion = text and user_session_of(digest, text, expiry)
                        if sesion:
                            sessions[key] = sesion
        return [*sessions.values()]

    async def _list(self, ID_Usuario: int, digests: set[bytes]) -> list[list[Any]]:
        """The user's live sessions, as lua/list.lua returns them: those that the user's index
        names, and those of the digests that are the user's."""
        listed: list[list[Any]] = await self._runner.run(
            scripts.LIST,
            [self._keys.index(ID_Usuario)],
            *filter(_is_digest, digests),
            execute=self._runner.main.execute_on_master,
        )
        with unavailable():
            missing = sum(not is_indexed for *_, is_indexed in listed)
        if missing:
            logger.warning(
                "the index of user %s is incomplete: it lacks %d of %d live sessions",
                *(ID_Usuario, missing, len(listed)),
                extra={"ID_Usuario": ID_Usuario},
            )
        return listed

    async def why(
        self, whose: int | str, *, deep: bool = False
    ) -> tuple[list[UserSession], list[Trace]]:
        """What is known of the sessions of a user, or of a token, by itself or by its fingerprint:
        those that live, and the traces of those that are gone, the latest first.

        ``deep``: from a look at every key, as always for a fingerprint.
        """
        if isinstance(whose, int):
            user = valid_integer("ID_Usuario", whose)
            traces = self._keys.traces(tokens.user_bucket(user))
            entries = await self._why("", user, [self._keys.index(user), traces])
            return await self.sessions(user, deep=deep), _known(entries)[1]
        if (token := tokens.parse(whose)) is None:
            live, gone = _known(await self._search(self._keys.pattern, tokens.digest_start(whose)))
            return (
                [session for session in live if session.fingerprint == whose],
                [trace for trace in gone if trace.fingerprint == whose],
            )
        digest, bucket = tokens.digest(token), tokens.bucket(token)
        if deep:
            return _known(await self._search(f"{self._keys.base(bucket)}*", digest))
        keys = [self._keys.session(token), self._keys.traces(bucket)]
        return _known(await self._why(digest, "", keys))

    async def _why(self, beginning: str, ID_Usuario: int | str, keys: list[str]) -> list[Any]:
        entries: list[Any] = await self._runner.run(
            scripts.WHY,
            keys[:1],
            beginning,
            ID_Usuario,
            *keys,
            execute=self._runner.main.execute_on_master,
        )
        return entries

    async def _search(self, pattern: str, beginning: str) -> list[Any]:
        """What lua/why.lua says of every key of the pattern that can know a digest."""
        entries: list[Any] = []
        kinds = tuple(kind.encode() for kind in (f"{SESSION}{beginning}", INDEX))
        with unavailable():
            await self._require_masters()
            async for execute, keys in self._scan(pattern):
                names = {key: key.partition(b"}:")[2] for key in keys}
                # The traces of all buckets of a page would keep Redis busy for too long.
                groups = [[key] for key, name in names.items() if name == TRACES.encode()]
                groups.append([key for key, name in names.items() if name.startswith(kinds)])
                for group in filter(None, groups):
                    entries += await self._runner.run(
                        scripts.WHY, [], beginning, "", *group, execute=execute
                    )
        return entries

    async def _digests_of_bucket(self, ID_Usuario: int) -> set[bytes]:
        """What the keys of the sessions of the user's bucket end in."""
        base = f"{self._keys.base(tokens.user_bucket(ID_Usuario))}{SESSION}"
        digests: set[bytes] = set()
        with unavailable():
            async for _, keys in self._scan(f"{base}*"):
                digests |= {key.removeprefix(base.encode()) for key in keys}
        return digests

    async def survey(self, before: int | None = None) -> AsyncIterator[Survey]:
        """Count the live sessions and their users. Yield the counts so far, again and again.
        ``before``: a moment, in epoch seconds.

        A session that exists during the whole survey is counted, of those that begin or end
        meanwhile some are. A key that Redis names twice counts twice: that happens while its table
        of keys grows or shrinks, and while slots of a Cluster move.
        """
        counts = Survey()
        with unavailable():
            await self._require_masters()
            async for execute, keys in self._scan(self._keys.pattern):
                if keys:
                    reply = await self._runner.run(
                        scripts.SURVEY, [], "" if before is None else before, *keys, execute=execute
                    )
                    sessions, active, begun, oldest, users = reply
                    counts.keys += len(keys)
                    counts.sessions += sessions
                    counts.active += active
                    counts.begun += begun
                    counts.users += users
                    if oldest:
                        counts.oldest = min(oldest, counts.oldest or oldest)
                yield counts

    async def end_begun(self, before: int | None, done: Ending) -> AsyncIterator[None]:
        """End the sessions of all users that began before a moment, in epoch seconds; without one,
        every session. Count in ``done`` what has been done, also when this raises.

        A session that exists when this begins has ended when this returns; of those that begin
        meanwhile, some have. Those that began at ``before`` or later go on. It can be repeated.
        """
        with unavailable():
            await self._require_masters()
            async for _, keys in self._scan(self._keys.sessions_of(""), pauses=False):
                buckets: defaultdict[str, list[str]] = defaultdict(list)
                for key in keys:
                    if _fingerprint_of(key) is not None:
                        buckets[base_of(key.decode())].append(key.decode())
                batches = [*buckets.values()]
                for start in range(0, len(batches), CALLS_AT_ONCE):
                    calls = (
                        self._end_begun(batch, before, done)
                        for batch in batches[start : start + CALLS_AT_ONCE]
                    )
                    for failure in await asyncio.gather(*calls, return_exceptions=True):
                        if failure is not None:
                            raise failure
                done.keys += len(keys)
                yield

    async def _end_begun(self, keys: list[str], before: int | None, done: Ending) -> None:
        """Those of one bucket, in at most two tries. When the reply to the first one is lost, the
        reply to the second one does not have what the first one has ended."""
        unknown = lost = 0
        """What is in ``done.unknown`` of these keys: while a try goes on, and before it."""

        def set_unknown(count: int) -> None:
            nonlocal unknown
            done.unknown += count - unknown
            unknown = count

        def on_reply(reply: Any) -> None:
            nonlocal lost
            ended = self._events.ended_by("operator", base_of(keys[0]), reply)
            done.sessions += ended
            lost = max(0, lost - ended)  # the first try's reply may come late, too
            set_unknown(lost)

        for may_repeat in True, False:
            set_unknown(len(keys))
            try:
                await self._runner.write(
                    scripts.END_BEGUN,
                    keys,
                    "" if before is None else before,
                    on_reply=on_reply,
                    tries=1,
                )
                return
            except StoreUnavailable as error:
                if is_outcome_known(error):
                    set_unknown(lost)
                if not may_repeat:
                    raise
                lost = unknown

    async def audit(self) -> AsyncIterator[tuple[int, list[tuple[str, str]]]]:
        """Look through every key of the prefix, some at a time. Yield how many those were, and the
        faults among them: the key, and what is wrong with it."""
        with unavailable():
            async for execute, keys in self._scan(self._keys.pattern):
                found = []
                if keys:
                    faults = await self._runner.run(scripts.AUDIT, [], *keys, execute=execute)
                    found = [(key.decode(errors="replace"), what.decode()) for key, what in faults]
                yield len(keys), found

    async def was_used(self) -> bool:
        """Whether there is or was a session under this prefix.

        A bucket's counter never expires, so those are asked for first. Only an eviction loses them:
        then any key will do, if SCAN is allowed.
        """
        counters = [self._keys.counter(bucket) for bucket in tokens.BUCKETS]
        with unavailable():
            for start in range(0, len(counters), COUNTERS_AT_ONCE):
                asked = (
                    self._runner.main.execute("EXPIRETIME", key, keys=[key], reads=True)
                    for key in counters[start : start + COUNTERS_AT_ONCE]
                )
                if any(expiry != _ABSENT for expiry in await asyncio.gather(*asked)):
                    return True
            with contextlib.suppress(NoPermissionError):
                async with contextlib.aclosing(self._scan(self._keys.pattern)) as found:
                    async for _, keys in found:
                        if keys:
                            return True
        return False

    async def _require_masters(self) -> None:
        """Raise ReadOnlyError when the server of a URL is a replica, which may lack sessions."""
        for execute in (await self._runner.main.masters()).values():
            if (await execute("ROLE"))[0] != b"master":
                raise ReadOnlyError("the server is a replica")

    async def _scan(
        self, pattern: str, *, pauses: bool = True
    ) -> AsyncGenerator[tuple[Execute, list[bytes]], None]:
        """The keys of the pattern, some at a time, and execute() on the master that has them.

        ``pauses``: between two pages, wait as long as the last one took, with what the caller did
        with it. So Redis has at least half of its time for the service.
        """
        loop = asyncio.get_running_loop()
        for execute in (await self._runner.main.masters()).values():
            cursor = b"0"
            while True:
                begun = loop.time()
                cursor, keys = await execute("SCAN", cursor, "MATCH", pattern, "COUNT", 500)
                yield execute, keys
                if int(cursor) == 0:
                    break
                if pauses:
                    await asyncio.sleep(min(loop.time() - begun, PAUSE_SECONDS_MAX))


def _known(entries: list[Any]) -> tuple[list[UserSession], list[Trace]]:
    """The live sessions and the traces of a reply of lua/why.lua, the latest first. Malformed ones
    are left out."""
    with unavailable():
        sessions = [
            user_session_of(digest.decode(), text, expiry)
            for digest, text, expiry in filter(is_live, entries)
        ]
        traces = {trace_of(*entry) for entry in entries if not is_live(entry)}
    live = [session for session in sessions if session is not None]
    gone = [trace for trace in traces if trace is not None]
    return live, sorted(gone, key=lambda trace: -trace.when)
