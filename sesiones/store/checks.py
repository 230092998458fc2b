"""The check, from a token to its session: batched, and degraded where Redis takes no writes."""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

from sesiones import tokens
from sesiones.metrics import Metrics
from sesiones.policy import SessionPolicy
from sesiones.redis_client import Argument, Execute
from sesiones.redis_client.cluster import SlotMovedError
from sesiones.redis_client.connection import Sent
from sesiones.sesion import Sesion, StoreUnavailable
from sesiones.store.batching import Batcher
from sesiones.store.events import SessionEvents
from sesiones.store.keys import Keys, base_of
from sesiones.store.near_cache import NearCache, Read
from sesiones.store.records import session_of, window_of
from sesiones.store.runner import ScriptRunner, WritesRefused, WritesSilent, unavailable
from sesiones.store.scripts import CHECK, PEEK, Script
from sesiones.store.tombstones import Tombstones
from sesiones.tasks import background

logger = logging.getLogger("sesiones.store")
refusals = logging.getLogger("sesiones.checks")

WRITES_SILENT_SECONDS = 1.0
"""How long checks only peek, after a slide was not answered in half of its time."""

Answer = Sesion | Exception | None
Answers = Sequence[Answer]
Submit = Callable[[str, Callable[[Answer], None]], None]


class CheckQueue:
    """The checks of one event loop. Each answer is the live and active session of a token; else
    None; else StoreUnavailable. A check with ``slide`` slides the session when that is due."""

    def __init__(
        self,
        runner: ScriptRunner,
        keys: Keys,
        policy: SessionPolicy,
        tombstones: Tombstones,
        events: SessionEvents,
        metrics: Metrics,
        cache: NearCache | None,
        *,
        timeout_seconds: float,
        observe: Callable[[list[float], Answers], None],
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._policy = policy
        self._tombstones = tombstones
        self._events = events
        self._metrics = metrics
        self._cache = cache
        self._timeout_seconds = timeout_seconds
        self._observe = observe
        self._batchers: dict[Hashable, Batcher[str, Sesion | None]] = {}
        """Two for each node that has checks, with and without ``slide``, so that a slow node holds
        up no other's."""
        self._writes_silent_until = 0.0

    def submitter(self, *, slide: bool) -> Submit:
        """A function that asks for a well-formed token's session, and calls its second argument
        with the answer."""
        if self._runner.main.node_of is None:
            return self._batcher(None, slide).submit
        return partial(self._submit_to_node, slide)

    def _submit_to_node(self, slide: bool, token: str, done: Callable[[Answer], None]) -> None:
        assert self._runner.main.node_of is not None
        self._batcher(self._runner.main.node_of(token[4:6]), slide).submit(token, done)

    def _batcher(self, node: Hashable, slide: bool) -> Batcher[str, Sesion | None]:
        if (batcher := self._batchers.get((node, slide))) is None:
            batcher = self._batchers[node, slide] = Batcher(
                partial(self._find_batch, slide),
                self._timeout_seconds,
                batch_max=self._runner.main.batch_max,
                in_flight_max=self._runner.main.in_flight_max,
                overdue=lambda: StoreUnavailable("it has waited its whole time"),
                observe=self._observe,
                on_sent=self._metrics.batch_sent,
                on_over=self._metrics.batch_over,
                on_idle=partial(self._drop_batcher, node, slide),
            )
        return batcher

    def _drop_batcher(self, node: Hashable, slide: bool) -> None:
        """A node that has no checks may have left the Cluster. One that has not gets a new batcher
        with its next check. A single server keeps its batcher, which submitter() has given out."""
        if node is not None:
            del self._batchers[node, slide]

    async def aclose(self) -> None:
        """Fail the checks that wait. To be called when the connections are closed."""
        closed = StoreUnavailable("closed")
        batchers = [*self._batchers.values()]
        await asyncio.gather(*(batcher.aclose(closed) for batcher in batchers))

    def _find_batch(
        self, slide: bool, batch: list[str], deadline: float, answered: Callable[[Answers], None]
    ) -> None:
        """Ask without a task, because that would cost as much as the rest of a lone check. A task
        goes on where the call cannot be sent at once, or fails."""
        keys = [self._keys.session(token) for token in batch]
        read = self._cache.begin(batch, keys) if self._cache is not None else None

        def go_on(sent: Sent | None) -> None:
            task = background(self._slide_or_peek(slide, batch, deadline, sent, read))
            task.add_done_callback(lambda done: answered(_answers_of(done, len(batch))))

        if time.monotonic() < self._writes_silent_until:
            go_on(None)
            return
        call = None

        def on_reply(replies: Any) -> Any:
            self._record_ended(keys, replies)
            if call is not None and call.fell_back:
                return replies
            answers = self._active(batch, self._slid(batch, keys, replies, read))
            answered(answers)
            return None

        call = self._runner.send(
            CHECK,
            keys,
            *self._arguments(keys, slide),
            deadline=deadline,
            on_reply=on_reply,
            fall_back=go_on,
        )
        if call is None:
            go_on(None)

    async def _slide_or_peek(
        self,
        slide: bool,
        batch: list[str],
        deadline: float,
        sent: Sent | None = None,
        read: Read | None = None,
    ) -> Answers:
        """``sent``: see ScriptRunner.run(). ``read``: what NearCache.begin() returned before it."""
        # A call that was sent is followed up even while writes are silent: its error may say that a
        # slot has moved, or that a master was demoted.
        if sent is not None or time.monotonic() >= self._writes_silent_until:
            try:
                sesiones = await self._fetch(
                    CHECK, batch, deadline, slide=slide, sent=sent, read=read
                )
                return self._active(batch, sesiones)
            except SlotMovedError:
                return await self._find_while_slots_move(slide, batch, deadline)
            except WritesRefused:
                pass
            except WritesSilent:
                self._writes_are_silent()
        sesiones = await self._fetch(PEEK, batch, deadline, on_master=True)
        return self._active(batch, sesiones)

    async def _find_while_slots_move(
        self, slide: bool, batch: list[str], deadline: float
    ) -> Answers:
        if len(batch) == 1:
            # The user's keys are being moved from node to node, and a slide would need all of them.
            sesiones = await self._fetch(PEEK, batch, deadline)
            return self._active(batch, sesiones)
        # The keys are no longer all on one node, so each check is routed by itself.
        alone = await asyncio.gather(
            *(self._slide_or_peek(slide, [token], deadline) for token in batch),
            return_exceptions=True,
        )
        return [
            answer if isinstance(answer, Exception) else answer[0]  # type: ignore[index]
            for answer in alone
        ]

    def _writes_are_silent(self) -> None:
        if time.monotonic() >= self._writes_silent_until:  # of several batches, only the first
            self._writes_silent_until = time.monotonic() + WRITES_SILENT_SECONDS
            # When the network has lost connections without a sign, the connection for degraded
            # reads may be lost as well. The callers have no time left to find that out, so it is
            # opened anew.
            self._runner.degraded_reads.reset()

    async def peek(self, token: str) -> Sesion | None:
        """The live session of a well-formed token, active or not, without using it."""
        (sesion,) = await self._fetch(PEEK, [token])
        return sesion

    async def _fetch(
        self,
        script: Script,
        batch: list[str],
        deadline: float | None = None,
        *,
        slide: bool = False,
        on_master: bool = False,
        sent: Sent | None = None,
        read: Read | None = None,
    ) -> list[Sesion | None]:
        """The sessions, active or not."""
        keys = [self._keys.session(token) for token in batch]

        def on_reply(replies: Any) -> Any:
            self._record_ended(keys, replies)
            return replies

        # A degraded read may come from another connection than the lease is for.
        if read is None and script is CHECK and self._cache is not None:
            read = self._cache.begin(batch, keys)
        commands = self._runner.main
        execute: Execute = commands.execute
        if on_master:
            execute = self._runner.degraded_reads.execute_on_master
        elif script.read_only:
            execute = partial(execute, reads=True)
        replies = await self._runner.run(
            script,
            keys,
            *self._arguments(keys, slide),
            execute=execute,
            deadline=deadline,
            on_reply=None if script.read_only else on_reply,
            sent=sent,
        )
        with unavailable():
            return self._slid(batch, keys, replies, read)

    def _arguments(self, keys: list[str], slide: bool) -> tuple[Argument, ...]:
        """Those of lua/check.lua and lua/peek.lua."""
        return self._policy.touch_seconds if slide else "", self._policy.max_seconds, *keys

    def _slid(
        self, batch: list[str], keys: list[str], replies: Any, read: Read | None
    ) -> list[Sesion | None]:
        """The sessions, active or not, of the script's reply. Slides are counted, and ``read`` is
        kept."""
        *flat, microseconds, slides, _ = replies
        texts = flat[::2]
        records = zip(batch, texts, flat[1::2], strict=True)
        sesiones = [session_of(token, text, expiry) for token, text, expiry in records]
        if self._tombstones.any_of(keys):
            for index, key in enumerate(keys):
                if key in self._tombstones:
                    sesiones[index] = None
        if self._cache is not None and read is not None:
            windows = [
                0 if sesion is None else window_of(text)
                for sesion, text in zip(sesiones, texts, strict=True)
            ]
            self._cache.fill(read, sesiones, windows, microseconds / 1e6)
        self._metrics.slid(slides)
        return sesiones

    def _record_ended(self, keys: list[str], replies: Any) -> None:
        """Slides have ended sessions that their index had lost. This is called with the reply, even
        if the deadline passed first: a session has ended all the same, and needs its tombstone."""
        for entry in replies[-1]:
            digest = entry[0].decode()
            (key,) = {key for key in keys if key.endswith(digest)}  # a batch may ask for it twice
            self._events.ended("unindexed", base_of(key), [entry])

    def _active(self, batch: list[str], sesiones: list[Sesion | None]) -> list[Sesion | None]:
        """The sessions that are active. The other tokens are refused."""
        if refusals.isEnabledFor(logging.DEBUG):
            for token, sesion in zip(batch, sesiones, strict=True):
                if sesion is None:
                    ended = self._keys.session(token) in self._tombstones
                    _log_refusal(token, "ended" if ended else "unknown", {})
                elif sesion.Estado_Sesion != 1:
                    numbers = {"ID_Sesion": sesion.ID_Sesion, "ID_Usuario": sesion.ID_Usuario}
                    _log_refusal(token, "inactive", numbers)
        return [s if s is not None and s.Estado_Sesion == 1 else None for s in sesiones]


def _answers_of(task: asyncio.Task[Answers], number: int) -> Answers:
    """What the task has returned, or that many errors: no check is answered with anything but a 503
    because a task was cancelled, as by the end of asyncio.run(), or has a bug."""
    error = StoreUnavailable("cancelled") if task.cancelled() else task.exception()
    if error is None:
        return task.result()
    if not isinstance(error, StoreUnavailable):
        logger.error("a batch of checks failed", exc_info=error)
        error = StoreUnavailable("a batch of checks failed")
    return [error] * number


def _log_refusal(token: str, reason: str, numbers: dict[str, int]) -> None:
    """``reason``: ended by this process during the last minute; unknown to Redis, because it has
    expired, has ended or never was; or inactive. ``numbers``: of the session, if it lives."""
    name = tokens.masked(token)
    shown = "".join(f", {field} {number}" for field, number in numbers.items())
    fields = {"event": "refused", "token": name, "reason": reason, **numbers}
    refusals.debug("refused %s: %s%s", name, reason, shown, extra=fields)
