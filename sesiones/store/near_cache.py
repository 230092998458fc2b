"""The near-cache: checks answered from memory, with a bound on how late an ending is seen.

The promise: a session that has ended or changed is refused, or seen as changed, by every node
within ``LEASE_SECONDS`` (1 s), whatever fails, and normally within milliseconds; by the node that
ended it at once. Theory of operation:

1. **Lease.** An entry belongs to the lease on the master that it was read from
   (redis_client/subscription.py), and counts only while that lease lasts.
2. **Invalidation.** Every script that ends or changes sessions publishes their digests in the same
   step. The ``InvalidationTable`` has a stamp for each value of a hash of a digest, and a message
   writes a new stamp. An entry has the stamp that stood there *before* its read was sent, and
   counts only while that one still stands there. So a read that was in flight when its session
   ended makes an entry that never counts, and nothing has to be looked up to remove an entry.
   Sessions with the same hash cost each other a read.
3. **At once.** A node writes the stamps of what it has ended itself as soon as it reads Redis's
   reply, together with the tombstones, and before its caller is answered. Its workers share the
   table, so none of them answers from memory after that.
4. **Time.** An entry counts until it is ``CACHE_SECONDS`` old, or a slide is due, or the session
   expires. All are counted on the monotonic clock from before the read was sent, and from Redis's
   time as of the read, to the microsecond: so they come early by the time of the round trip, and
   never late. A cached check is a check at which Redis would not have written anything.

Only live and active sessions become entries. Entries that no longer count stay until they are asked
for, or until the oldest are removed because there are ``ENTRIES_MAX``.
"""

import mmap
import os
import secrets
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

from sesiones import tokens
from sesiones.metrics import (
    CACHE_INVALIDATIONS,
    CACHE_LEASE_LOST,
    CACHE_LEASE_MISSING,
    Metrics,
)
from sesiones.redis_client import Lease
from sesiones.sesion import Sesion
from sesiones.shared_memory import SharedMemory
from sesiones.store.runner import Outage

ENTRIES_MAX = 65_536
"""Entries of one event loop: the oldest are removed for new ones. One takes about 1,900 bytes, with
its response and a request of 200 bytes, and up to 2 KB more with a longer one."""
CLOCK_RATE = 0.999
"""Redis's clock may run faster than this machine's: while it is adjusted, by up to 0.05 %."""

_STAMPS = 1 << 18
_DIGEST_LENGTH = 22


class InvalidationTable(SharedMemory):
    """A stamp for each value of a hash of a session's digest. Any process of the service may write
    one: then no entry with that hash counts any more, in any of them. Two megabytes."""

    def __init__(self, descriptor: int | None = None) -> None:
        super().__init__(descriptor)
        os.ftruncate(self._descriptor, 8 * _STAMPS)
        self.stamps = memoryview(mmap.mmap(self._descriptor, 8 * _STAMPS)).cast("Q")
        weakref.finalize(self, os.close, self._descriptor)

    @staticmethod
    def index(digest: bytes) -> int:
        """Where the stamp of the session is."""
        return crc32(digest) % _STAMPS

    def invalidate(self, digests: Iterable[bytes]) -> None:
        """These sessions have ended or changed."""
        # No value is written twice. It is random, because a count would go on alike in processes
        # that were forked from this one.
        stamp = secrets.randbits(64)
        for digest in digests:
            self.stamps[self.index(digest)] = stamp


class Entry:
    """The answer to the check of one token. ``response`` is for what makes a response of it: the
    kind of the response, and its bytes."""

    __slots__ = ("index", "lease", "response", "sesion", "stamp", "until")

    def __init__(self, sesion: Sesion, until: float, lease: Lease, index: int, stamp: int) -> None:
        self.sesion = sesion
        self.until = until
        self.lease = lease
        self.index = index
        self.stamp = stamp
        self.response: tuple[object, bytes] = (None, b"")


class Read(NamedTuple):
    """What is read, and what has to be unchanged when it is answered."""

    sent_at: float
    batch: Sequence[str]
    leases: list[Lease]
    indexes: list[int]
    stamps: list[int]


class NearCache:
    """The entries of one event loop."""

    def __init__(
        self,
        cache_seconds: int,
        touch_seconds: int,
        table: InvalidationTable,
        lease_of: Callable[[str], Lease],
        metrics: Metrics,
    ) -> None:
        """``lease_of``: returns the lease on what is read of a bucket's keys now."""
        self._cache_seconds = cache_seconds
        self._touch_seconds = touch_seconds
        self._table = table
        self.stamps = table.stamps
        self._lease_of = lease_of
        self._metrics = metrics
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._counted = 0
        """Entries, as the metric has them."""
        self._missing = 0
        """Masters without a lease."""
        self._outage = Outage("the cache asks Redis about every check", "the cache answers again")

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, token: str) -> Entry | None:
        """The entry of the token, if it counts. The caller counts the check."""
        entry = self._entries.get(token)
        if entry is None:
            return None
        if self.counts(entry, time.monotonic()):
            return entry
        del self._entries[token]
        return None

    def counts(self, entry: Entry, now: float) -> bool:
        """Whether the entry may answer a check."""
        return (
            now < entry.until
            and now < entry.lease.until
            and self.stamps[entry.index] == entry.stamp
        )

    def begin(self, batch: Sequence[str], keys: Sequence[str]) -> Read:
        """To be called before the sessions of these tokens are read. Every check that comes here is
        a miss."""
        stamps, lease_of = self.stamps, self._lease_of
        indexes = [self._table.index(key[-_DIGEST_LENGTH:].encode()) for key in keys]
        return Read(
            time.monotonic(),
            batch,
            [lease_of(tokens.bucket(token)) for token in batch],
            indexes,
            [stamps[index] for index in indexes],
        )

    def fill(
        self,
        read: Read,
        sesiones: Sequence[Sesion | None],
        windows: Sequence[int],
        redis_time: float,
    ) -> None:
        """Keep what was read. ``windows``: the sessions' windows in seconds; ``redis_time``:
        Redis's time as of the read."""
        entries = self._entries
        for sesion, window, token, lease, index, stamp in zip(
            sesiones, windows, *read[1:], strict=True
        ):
            entry = entries.get(token)
            if entry is not None and entry.sesion != sesion:
                # The message is still to come. The same answer may be kept elsewhere: by the
                # requests that had it (http/repeats.py), and by other workers.
                del entries[token]
                self.stamps[index] = secrets.randbits(64)
            if sesion is None or sesion.Estado_Sesion != 1:
                continue
            if (
                read.sent_at >= lease.until
                or self.stamps[index] != stamp
                or self._lease_of(tokens.bucket(token)) is not lease
            ):
                continue
            slide = sesion.Ultima_Actividad + min(self._touch_seconds, max(1, window // 2))
            redis_seconds = min(slide, sesion.Fecha_Expiracion) - redis_time
            until = read.sent_at + min(self._cache_seconds, CLOCK_RATE * redis_seconds)
            if until > read.sent_at:
                entries.pop(token, None)
                entries[token] = Entry(sesion, until, lease, index, stamp)
        while len(entries) > ENTRIES_MAX:
            entries.popitem(last=False)
        self._metrics.filled(len(sesiones), len(entries) - self._counted)
        self._counted = len(entries)
        if self._outage.failing and not self._missing:
            self._outage.succeeded()

    def message(self, digests: bytes) -> None:
        """What a script has published: the digests of the sessions that it ended or changed."""
        self.invalidate(digests.split(b" "))

    def invalidate(self, digests: Sequence[bytes]) -> None:
        """These sessions have ended or changed."""
        self._table.invalidate(digests)
        self._metrics.add(CACHE_INVALIDATIONS, count=len(digests))

    def clear(self) -> None:
        """Remove every entry."""
        self._entries.clear()
        self._metrics.filled(0, -self._counted)
        self._counted = 0

    def lease_changed(self, missing: int, lost: bool, reason: str) -> None:
        """See OnLease in redis_client/subscription.py."""
        self._missing += missing
        self._metrics.add(CACHE_LEASE_MISSING, count=missing)
        self._metrics.add(CACHE_LEASE_LOST, count=lost)
        if reason:
            self._outage.failed(reason)
