"""The sessions that this process has ended of late: no failover may bring them back.

Replication is asynchronous, so a master that takes over may not know of the last logouts. What
ended in the last minute is remembered here: it is refused at once, whatever Redis says, and owed to
the new master until that has ended it too.
"""

import logging
import random
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable

logger = logging.getLogger("sesiones.endings")

SECONDS = 60
"""For so long at the least."""
SESSIONS_MAX = 100_000
"""More than that: the oldest are forgotten. They take about 25 MB."""
CALL_MAX = 64
"""Sessions that are ended in one call, so that none keeps Redis long."""


def _tag(key: str) -> str:
    return key.partition("{")[2][:2]


class Endings:
    """Sessions by their keys."""

    def __init__(self) -> None:
        self._recent: OrderedDict[str, float] = OrderedDict()
        """When each ended, the oldest first."""
        self._owed: OrderedDict[str, int] = OrderedDict()
        """Of which change each is owed."""
        self.changes = 0
        """How often keys have come into other hands."""
        self._logged_at = -float(SECONDS)

    def __contains__(self, key: str) -> bool:
        return key in self._recent or key in self._owed

    def any_of(self, keys: Iterable[str]) -> bool:
        """Whether one of them has ended. Every check comes here."""
        if self._owed and not self._owed.keys().isdisjoint(keys):
            return True
        return not self._recent.keys().isdisjoint(keys)

    def remember(self, key: str) -> None:
        """It has just ended."""
        self._recent[key] = time.monotonic()
        self._recent.move_to_end(key)
        self._forget()

    def forget(self, key: str) -> None:
        """It has begun anew."""
        self._recent.pop(key, None)
        self._owed.pop(key, None)

    def owe(self, concerned: Callable[[str], bool]) -> bool:
        """Keys of the hash tags concerned have come into other hands: whether anything is owed."""
        self._forget()
        self.changes += 1
        for key in self._recent:
            if concerned(_tag(key)):
                self._owed[key] = self.changes
        self._limit(self._owed)
        return bool(self._owed)

    def owed(self) -> list[list[str]]:
        """What is owed, in lists of one hash tag each; in any order, so that those of a node that
        is gone do not keep the others from their turn for ever."""
        by_tag = defaultdict(list)
        for key in self._owed:
            by_tag[_tag(key)].append(key)
        lists = [
            keys[start : start + CALL_MAX]
            for keys in by_tag.values()
            for start in range(0, len(keys), CALL_MAX)
        ]
        random.shuffle(lists)
        return lists

    def settle(self, keys: Iterable[str], changes: int) -> None:
        """They have ended once more, in the hands that they were in after so many changes."""
        for key in keys:
            if self._owed.get(key, changes + 1) <= changes:
                del self._owed[key]

    def _forget(self) -> None:
        before = time.monotonic() - SECONDS
        while self._recent and next(iter(self._recent.values())) < before:
            self._recent.popitem(last=False)
        self._limit(self._recent)

    def _limit(self, sessions: OrderedDict[str, float] | OrderedDict[str, int]) -> None:
        if len(sessions) > SESSIONS_MAX and time.monotonic() - self._logged_at > SECONDS:
            self._logged_at = time.monotonic()
            logger.warning("more than %d sessions ended: the oldest are forgotten", SESSIONS_MAX)
        while len(sessions) > SESSIONS_MAX:
            sessions.popitem(last=False)
