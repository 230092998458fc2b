"""Operations that need no token, for operators: a user's sessions, an audit of every key."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from redis.exceptions import NoPermissionError

from sesiones import tokens
from sesiones.redis_client import Execute
from sesiones.sesion import UserSession, valid_integer
from sesiones.store import scripts
from sesiones.store.events import SessionEvents
from sesiones.store.keys import INDEX, SESSION, TRACES, Keys
from sesiones.store.records import user_session_of, user_sessions_of
from sesiones.store.runner import ScriptRunner, unavailable
from sesiones.store.tombstones import Tombstones
from sesiones.store.traces import Trace, is_live, trace_of

logger = logging.getLogger("sesiones.store")

COUNTERS_AT_ONCE = 256
"""Counters that was_used() asks for at a time."""
_ABSENT = -2
"""EXPIRETIME's reply for a key that does not exist."""
_is_digest = re.compile(rb"[A-Za-z0-9_-]{%d}" % len(tokens.digest(""))).fullmatch
"""Whether a session's key may end in this. No token leads to any other key."""


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
        listed = await self._list(ID_Usuario, deep)
        base = self._keys.base(tokens.user_bucket(ID_Usuario))
        with unavailable():
            return user_sessions_of(base, listed, self._tombstones)[0]

    async def end_user(self, ID_Usuario: int, ID_Sesion: int | None, *, deep: bool) -> int:
        """End one session of the user, or all. Return how many ended."""
        listed = await self._list(ID_Usuario, deep) if deep else []
        base = self._keys.base(tokens.user_bucket(ID_Usuario))

        def on_reply(reply: Any) -> int:
            actor, *ended = reply
            self._events.ended("operator", base, ended, actor.decode())
            return len(ended)

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

    async def _list(self, ID_Usuario: int, deep: bool) -> list[list[Any]]:
        """The user's live sessions, as lua/list.lua returns them. ``deep``: with those that the
        user's index does not name."""
        digests: set[bytes] = set()
        if deep:
            base = f"{self._keys.base(tokens.user_bucket(ID_Usuario))}{SESSION}"
            with unavailable():
                async for _, keys in self._scan(f"{base}*"):
                    digests |= {key.removeprefix(base.encode()) for key in keys}
        index = self._keys.index(ID_Usuario)
        listed: list[list[Any]] = await self._runner.run(
            scripts.LIST,
            [index],
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

    async def why(self, whose: int | str, *, deep: bool) -> tuple[list[UserSession], list[Trace]]:
        """The live sessions, and the traces of those that are gone, of a user, a token, or the
        token of a fingerprint."""
        if isinstance(whose, int):
            user = valid_integer("ID_Usuario", whose)
            traces = self._keys.traces(tokens.user_bucket(user))
            entries = await self._why("", user, [self._keys.index(user), traces])
            return await self.sessions(user, deep=deep), _known(entries)[1]
        if (token := tokens.parse(whose)) is None:
            live, gone = _known(
                await self._search(self._keys.pattern, tokens.digest_beginning(whose))
            )
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
        kinds = tuple(kind.encode() for kind in (f"{SESSION}{beginning}", INDEX, TRACES))
        with unavailable():
            async for execute, keys in self._scan(pattern):
                asked = [key for key in keys if key.partition(b"}:")[2].startswith(kinds)]
                if asked:
                    entries += await self._runner.run(
                        scripts.WHY, [], beginning, "", *asked, execute=execute
                    )
        return entries

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

    async def _scan(self, pattern: str) -> AsyncGenerator[tuple[Execute, list[bytes]], None]:
        """The keys of the pattern, some at a time, and execute() on the master that has them."""
        for execute in (await self._runner.main.masters()).values():
            cursor = b"0"
            while True:
                cursor, keys = await execute("SCAN", cursor, "MATCH", pattern, "COUNT", 500)
                yield execute, keys
                if int(cursor) == 0:
                    break


def _known(entries: list[Any]) -> tuple[list[UserSession], list[Trace]]:
    """The live sessions and the traces of a reply of lua/why.lua, the latest first."""
    with unavailable():
        sessions = [
            user_session_of(digest.decode(), text, expiry)
            for digest, text, expiry in filter(is_live, entries)
        ]
        traces = [trace_of(*entry) for entry in entries if not is_live(entry)]
    live = [session for session in sessions if session is not None]
    return live, sorted(set(traces), key=lambda trace: -trace.when)
