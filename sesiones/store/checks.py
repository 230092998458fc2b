"""The check, from a token to its session: batched, and degraded where writes are not to be had."""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial

from sesiones.metrics import Metrics
from sesiones.redis_client import Execute
from sesiones.redis_client.cluster import SlotMovedError
from sesiones.sesion import Sesion, StoreUnavailable
from sesiones.store.batching import Batcher
from sesiones.store.errors import WritesRefused, WritesSilent
from sesiones.store.events import SessionEvents
from sesiones.store.keys import SESSION, Keys
from sesiones.store.records import session_of
from sesiones.store.scripts import CHECK, PEEK, Script, ScriptRunner, unavailable
from sesiones.store.tombstones import Tombstones

logger = logging.getLogger("sesiones.store")

WRITES_SILENT_SECONDS = 1.0
"""How long checks do without writes, once a write was not answered in half of its time."""

Answer = Sesion | Exception | None
Submit = Callable[[str, Callable[[Answer], None]], None]


class CheckQueue:
    """The checks of one event loop. Each answer is the live and active session of a token, slid
    when due; else None; else StoreUnavailable."""

    def __init__(
        self,
        runner: ScriptRunner,
        keys: Keys,
        tombstones: Tombstones,
        events: SessionEvents,
        metrics: Metrics,
        *,
        touch_seconds: int,
        max_seconds: int,
        timeout_seconds: float,
        observe: Callable[[list[float], Sequence[Answer]], None],
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._tombstones = tombstones
        self._events = events
        self._metrics = metrics
        self._touch_seconds = touch_seconds
        self._max_seconds = max_seconds
        self._timeout_seconds = timeout_seconds
        self._observe = observe
        self._batchers: dict[Hashable, Batcher[str, Sesion | None]] = {}
        self._writes_silent_until = 0.0
        self.submit: Submit = (
            self._batcher(None).submit if runner.commands.node_of is None else self._submit_to_node
        )
        """Ask for a well-formed token's session; the second argument is called with the answer."""

    def _submit_to_node(self, token: str, done: Callable[[Answer], None]) -> None:
        assert self._runner.commands.node_of is not None
        self._batcher(self._runner.commands.node_of(token[4:6])).submit(token, done)

    def _batcher(self, node: Hashable) -> Batcher[str, Sesion | None]:
        """The queue of a node's checks: a node that is slow holds up no other's."""
        if (batcher := self._batchers.get(node)) is None:
            batcher = self._batchers[node] = Batcher(
                self._check,
                self._timeout_seconds,
                batch_max=self._runner.commands.batch_max,
                in_flight_max=self._runner.commands.in_flight_max,
                overdue=lambda: StoreUnavailable("it has waited its whole time"),
                observe=self._observe,
            )
        return batcher

    async def aclose(self) -> None:
        """Fail what waits. To be called when the connections are closed."""
        closed = StoreUnavailable("closed")
        await asyncio.gather(*(batcher.aclose(closed) for batcher in self._batchers.values()))

    async def _check(self, batch: list[str], deadline: float) -> Sequence[Answer]:
        self._metrics.batch_sent(len(batch))
        try:
            return await self._answers(batch, deadline)
        except StoreUnavailable:
            raise
        except Exception as error:  # a bug of ours: no check is answered with anything but a 503
            logger.exception("a batch of checks failed")
            raise StoreUnavailable("a batch of checks failed") from error
        finally:
            self._metrics.batch_over(len(batch))

    async def _answers(self, batch: list[str], deadline: float) -> Sequence[Answer]:
        if time.monotonic() >= self._writes_silent_until:
            try:
                sesiones, slides = await self._read(CHECK, batch, deadline)
                self._metrics.slid(slides)
                return _active(sesiones)
            except SlotMovedError:
                return await self._answers_while_slots_move(batch, deadline)
            except WritesRefused:
                pass
            except WritesSilent:
                self._writes_are_silent()
        sesiones, _ = await self._read(PEEK, batch, deadline, on_master=True)
        return _active(sesiones)

    async def _answers_while_slots_move(
        self, batch: list[str], deadline: float
    ) -> Sequence[Answer]:
        if len(batch) == 1:
            # Its user's keys are being moved from node to node: no slide, it would need them all.
            sesiones, _ = await self._read(PEEK, batch, deadline)
            return _active(sesiones)
        # They are no longer all on one node: each finds its own way.
        alone = await asyncio.gather(
            *(self._answers([token], deadline) for token in batch), return_exceptions=True
        )
        return [
            answer if isinstance(answer, Exception) else answer[0]  # type: ignore[index]
            for answer in alone
        ]

    def _writes_are_silent(self) -> None:
        if time.monotonic() >= self._writes_silent_until:  # else another batch was the first
            self._writes_silent_until = time.monotonic() + WRITES_SILENT_SECONDS
            # Where the way to Redis was lost without a sign, its connections are as dead, and
            # there is no time left to find that out.
            self._runner.reads.reset()

    async def peek(self, token: str) -> Sesion | None:
        """The live session of a well-formed token, active or not, without using it."""
        (sesion,), _ = await self._read(PEEK, [token])
        return sesion

    async def _read(
        self,
        script: Script,
        batch: list[str],
        deadline: float | None = None,
        *,
        on_master: bool = False,
    ) -> tuple[list[Sesion | None], int]:
        """The sessions, active or not, and how many were slid."""
        keys = [self._keys.session(token) for token in batch]
        commands = self._runner.commands
        execute: Execute = commands.execute
        if on_master:
            execute = self._runner.reads.execute_on_master
        elif script is PEEK:
            execute = partial(execute, reads=True)
        replies = await self._runner.run(
            script,
            keys,
            self._touch_seconds,
            self._max_seconds,
            *keys,
            execute=execute,
            deadline=deadline,
        )
        with unavailable():
            ended = replies.pop()
            slides: int = replies.pop()
            records = zip(batch, replies[::2], replies[1::2], strict=True)
            sesiones = [session_of(token, text, expiry) for token, text, expiry in records]
            for session in ended:
                digest = session[0].decode()
                key = next(key for key in keys if key.endswith(digest))
                self._events.ended("unindexed", key.removesuffix(f"{SESSION}{digest}"), [session])
        if self._tombstones.any_of(keys):
            for index, key in enumerate(keys):
                if key in self._tombstones:
                    sesiones[index] = None
        return sesiones, slides


def _active(sesiones: list[Sesion | None]) -> list[Sesion | None]:
    return [s if s is not None and s.Estado_Sesion == 1 else None for s in sesiones]
