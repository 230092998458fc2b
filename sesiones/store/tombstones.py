"""Tombstones: the keys of sessions that a SessionStore has ended lately.

Redis replicates asynchronously, so a promoted master can still hold a session that was logged out.
A check of a session with a tombstone finds none, whatever Redis says. After a failover the
tombstones are replayed until the new master has deleted those sessions too.

A tombstone stays until the owner of its key has answered a command that was sent a minute or more
after the ending. So it does not matter how late the loss of a connection is noticed: the tombstones
of the minute before the owner's last answer are still there to be replayed. Only when there are
more than ``TOMBSTONES_MAX`` are the oldest dropped before that.
"""

import logging
import os
import random
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Set

logger = logging.getLogger("sesiones.tombstones")

TOMBSTONE_TTL_SECONDS = 60
"""How long a tombstone stays at the least, counted up to the owner's last answer."""
TOMBSTONES_MAX = 100_000
"""Of more than that, the oldest are dropped. So many take about 25 MB."""
REPLAY_BATCH_MAX = 64
"""Sessions that one call ends, so that no call keeps Redis busy for long."""

_lock = threading.RLock()
"""Of every store of the process. A fork waits for it: one that another thread holds meanwhile would
stay locked in the new process."""
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def _bucket(key: str) -> str:
    return key.partition("{")[2][:2]


class Tombstones:
    """The tombstones of one store, as the keys of the sessions; any thread may use them.
    ``last_answered_sent_at``: when the newest command that the owner of a bucket's keys has
    answered was sent, in time.monotonic()'s time."""

    def __init__(self, last_answered_sent_at: Callable[[str], float]) -> None:
        self._last_answered_sent_at = last_answered_sent_at
        self._recent: OrderedDict[str, float] = OrderedDict()
        """When each session ended, the oldest first."""
        self._pending: OrderedDict[str, int] = OrderedDict()
        """The sessions to replay, each with the generation that queued it."""
        self.generation = 0
        """How often replays have been queued: keys may have changed their owner each time."""
        self._warned_at = -float(TOMBSTONE_TTL_SECONDS)

    def __contains__(self, key: str) -> bool:
        return key in self._recent or key in self._pending

    def any_of(self, keys: Iterable[str]) -> bool:
        """Whether one of them has a tombstone. Every batch of checks asks."""
        if self._pending and not self._pending.keys().isdisjoint(keys):
            return True
        return not self._recent.keys().isdisjoint(keys)

    @property
    def pending(self) -> bool:
        """Whether there is anything to replay."""
        return bool(self._pending)

    def add(self, keys: Iterable[str]) -> None:
        """These sessions have just ended."""
        with _lock:
            now = time.monotonic()
            for key in keys:
                self._recent[key] = now
                self._recent.move_to_end(key)
            self._expire()

    def discard(self, key: str) -> None:
        """The session was made anew."""
        with _lock:
            self._recent.pop(key, None)
            self._pending.pop(key, None)

    def queue_replay(self, buckets: Set[str]) -> None:
        """The keys of these buckets may have another owner, which may lack recent deletions."""
        with _lock:
            self._expire()
            self.generation += 1
            for key in self._recent:
                if _bucket(key) in buckets:
                    self._pending[key] = self.generation
            self._limit(self._pending)

    def batches(self) -> list[list[str]]:
        """The pending tombstones, in batches of one bucket each. The batches are shuffled, so that
        those of a node that does not answer cannot hold up the others for ever."""
        by_bucket = defaultdict(list)
        with _lock:
            for key in self._pending:
                by_bucket[_bucket(key)].append(key)
        batches = [
            keys[start : start + REPLAY_BATCH_MAX]
            for keys in by_bucket.values()
            for start in range(0, len(keys), REPLAY_BATCH_MAX)
        ]
        random.shuffle(batches)
        return batches

    def acknowledge(self, keys: Iterable[str], generation: int) -> None:
        """The sessions were ended again, by the owner that they had in that generation."""
        with _lock:
            for key in keys:
                if self._pending.get(key, generation + 1) <= generation:
                    del self._pending[key]

    def _expire(self) -> None:
        while self._recent:
            key, ended_at = next(iter(self._recent.items()))
            if ended_at >= self._last_answered_sent_at(_bucket(key)) - TOMBSTONE_TTL_SECONDS:
                break
            del self._recent[key]
        self._limit(self._recent)

    def _limit(self, sessions: OrderedDict[str, float] | OrderedDict[str, int]) -> None:
        now = time.monotonic()
        if len(sessions) > TOMBSTONES_MAX and now - self._warned_at > TOMBSTONE_TTL_SECONDS:
            self._warned_at = now
            logger.warning("more than %d sessions ended: the oldest are forgotten", TOMBSTONES_MAX)
        while len(sessions) > TOMBSTONES_MAX:
            sessions.popitem(last=False)
