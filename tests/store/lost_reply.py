"""Loses the reply to a command that was carried out."""

import asyncio

from sesiones.store import SessionStore
from tests.harness.service import comes_true


class LostReply:
    """A filter of a relay: when told to, it loses the next reply of a script, or to WAIT, and ends
    the connection. A reply to TIME, which an idle connection asks for, is neither."""

    def __init__(self, to: str = "script") -> None:
        self.next_is_lost = False
        self._begin = {"script": b"*2\r\n", "WAIT": b":"}[to]

    async def arm(self, store: SessionStore) -> None:
        """Lose the next reply, once the store has no replay in flight, which has replies too."""
        assert await asyncio.to_thread(comes_true, lambda: not store._tombstones.pending, 5)
        self.next_is_lost = True

    def __call__(self, reply: bytes) -> bytes | None:
        is_time = reply.startswith(b"*2\r\n$10\r\n")  # epoch seconds; a tag has fewer digits
        if is_time or not reply.startswith(self._begin):
            return reply
        lost, self.next_is_lost = self.next_is_lost, False
        return None if lost else reply
