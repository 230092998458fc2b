"""The replay of tombstones after a failover: the new master may lack the deletions."""

import asyncio
import logging
from collections.abc import Set
from typing import Any

from sesiones.sesion import StoreUnavailable
from sesiones.store.events import SessionEvents
from sesiones.store.keys import base_of
from sesiones.store.runner import ScriptRunner
from sesiones.store.scripts import END_AGAIN
from sesiones.store.tombstones import Tombstones
from sesiones.tasks import SingleFlight

logger = logging.getLogger("sesiones.store")

RETRY_SECONDS = 0.25
"""The pause after calls of which none was answered."""
CALLS_AT_ONCE = 16
"""Calls that are in flight at the same time; checks go on beside them."""


class Replay:
    """Ends the sessions of the pending tombstones again, on one event loop's connections."""

    def __init__(self, runner: ScriptRunner, tombstones: Tombstones, events: SessionEvents) -> None:
        self._runner = runner
        self._tombstones = tombstones
        self._events = events
        self._running = SingleFlight(self._run)

    def owner_changed(self, buckets: Set[str]) -> None:
        """A connection was lost or slots changed owner, so the next master may lack recent
        deletions. Queue the tombstones of these buckets for replay."""
        self._tombstones.queue_replay(buckets)
        self.start()

    def start(self) -> None:
        """Replay what is pending, if anything."""
        if self._tombstones.pending:
            self._running.start()

    async def _run(self) -> None:
        try:
            await self._end_pending()
        except asyncio.CancelledError:
            # With all other tasks of the loop, which may go on.
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self.start)
            raise

    async def _end_pending(self) -> None:
        while batches := self._tombstones.batches():
            back = 0
            for start in range(0, len(batches), CALLS_AT_ONCE):
                calls = map(self._end_again, batches[start : start + CALLS_AT_ONCE])
                ended = [count for count in await asyncio.gather(*calls) if count is not None]
                back += sum(ended)
                if not ended:
                    await asyncio.sleep(RETRY_SECONDS)
            if back:
                logger.warning("%d sessions that had ended were back, and have been ended", back)

    async def _end_again(self, keys: list[str]) -> int | None:
        """Delete these sessions again. Return how many still existed, or None if Redis gave no
        answer and the batch must be retried."""
        generation = self._tombstones.generation

        def on_reply(reply: Any) -> int:
            _, *ended = reply
            self._events.ended("failover", base_of(keys[0]), ended)
            return len(ended)

        try:
            count: int = await self._runner.run(
                END_AGAIN, keys, execute=self._runner.confirmed_writes.execute, on_reply=on_reply
            )
        except StoreUnavailable:
            return None
        self._tombstones.acknowledge(keys, generation)
        return count

    async def aclose(self) -> None:
        """Stop."""
        await self._running.aclose()
