"""Requests that have been answered from the near-cache before. As long as the entry that answered
one counts, the same request has the same answer, which is found in one look-up, without a response
to make.

A request is known again by its bytes, if it matched a request template: then it is not even
matched again. If it matched a request pattern, its bytes are hardly ever the same, and it is known
by its token and its kind, a tuple, which no bytes of a client equal. Bytes are looked up only
between two messages, as templates.py demands.
"""

import time
from collections import OrderedDict
from collections.abc import Callable

from sesiones.http.templates import Kind
from sesiones.metrics import Metrics
from sesiones.redis_client import Lease
from sesiones.store.near_cache import ENTRIES_MAX, Entry, NearCache

Repeat = bytes | tuple[bytes, Kind]
"""What a request is known by."""

Answer = Callable[[Repeat], bytes | None]


class Repeats:
    """The requests of one event loop, at most ``ENTRIES_MAX``: the oldest make room."""

    def __init__(self, cache: NearCache, metrics: Metrics) -> None:
        self.cache = cache
        self.responses = metrics.responses_from_memory
        """To count a response from memory."""
        # Not the entries themselves: a tuple is read faster, mostly because it is nearer in memory.
        self._kept: OrderedDict[Repeat, tuple[float, Lease, int, int, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, request: Repeat, entry: Entry, response: bytes) -> None:
        """The entry has answered the request with this response."""
        if len(self._kept) >= ENTRIES_MAX:
            self._kept.popitem(last=False)
        self._kept[request] = entry.until, entry.lease, entry.index, entry.stamp, response

    def answerer(self) -> Answer:
        """A function that returns the response to a request, or None if there is none that still
        counts. It counts the check.

        It is what a check from memory costs beside the socket, so it does what NearCache.get() does
        by itself: each call and each attribute would cost a hundredth of such a check.
        """
        find, stamps, responses = self._kept.get, self.cache.stamps, self.responses
        monotonic = time.monotonic

        def answer(request: Repeat) -> bytes | None:
            kept = find(request)
            if kept is None:
                return None
            until, lease, index, stamp, response = kept
            now = monotonic()
            if now < until and now < lease.until and stamps[index] == stamp:
                responses[0] += 1
                return response
            return None

        return answer
