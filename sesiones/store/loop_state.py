"""The part of a store that belongs to one event loop."""

import asyncio
from dataclasses import dataclass

from sesiones.store.checks import CheckQueue
from sesiones.store.events import SessionEvents
from sesiones.store.near_cache import NearCache
from sesiones.store.operators import OperatorTools
from sesiones.store.replay import Replay
from sesiones.store.runner import ScriptRunner
from sesiones.store.writes import SessionWrites


@dataclass(frozen=True)
class LoopState:
    """One event loop's connections, and everything that waits for them."""

    runner: ScriptRunner
    events: SessionEvents
    cache: NearCache | None
    checks: CheckQueue
    writes: SessionWrites
    operators: OperatorTools
    replay: Replay

    def __post_init__(self) -> None:
        for commands in self.runner.ending_sessions:
            commands.on_owner_change(self.replay.owner_changed)

    def last_answered_sent_at(self, bucket: str) -> float:
        """The same as Commands.last_answered_sent_at(), of the connections that end sessions."""
        return min(
            commands.last_answered_sent_at(bucket) for commands in self.runner.ending_sessions
        )

    async def aclose(self) -> None:
        await self.replay.aclose()
        await self.runner.aclose()
        await self.checks.aclose()
        if self.cache is not None:
            self.cache.clear()
        await asyncio.sleep(0)  # until the transports that were aborted are closed
        self.events.flush()
