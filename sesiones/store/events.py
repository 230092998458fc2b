"""Sessions that were created, changed or ended: the metric, a line in the log, the tombstone of an
ended session, and the invalidation of what the near-cache has of it.

A logoutAll can end thousands of sessions at once, and a line of log takes as long as a check. So
tombstones and metrics are written at once, and all lines but the first few in slices, between which
the event loop goes on with everything else.
"""

import asyncio
import logging
from collections import deque
from typing import Any

from sesiones import tokens
from sesiones.metrics import CREATED, ENDED, UPDATED, Metrics
from sesiones.sesion import Sesion
from sesiones.store.keys import SESSION
from sesiones.store.near_cache import NearCache
from sesiones.store.records import number
from sesiones.store.tombstones import Tombstones

logger = logging.getLogger("sesiones.store")

LINES_AT_ONCE = 16
"""Lines of log that are written before the event loop goes on."""


class SessionEvents:
    """The events of one event loop."""

    def __init__(self, tombstones: Tombstones, metrics: Metrics, cache: NearCache | None) -> None:
        self._tombstones = tombstones
        self._metrics = metrics
        self._cache = cache
        self._waiting: deque[tuple[str, str, list[Any]]] = deque()
        """Endings whose line is still to be written: the reason, the actor, the script's entry."""
        self._scheduled = False

    def created(self, ID_Sesion: int, ID_Usuario: int, token: str) -> None:
        self._metrics.add(CREATED)
        _log("created", ID_Sesion, ID_Usuario, tokens.fingerprint(token), "")

    def updated(self, sesion: Sesion, fields: list[str], actor: str) -> None:
        """``fields``: what has changed, with the new values of integers. An update that changed
        nothing is none."""
        if self._cache is not None:  # a second try does not tell what the first has changed
            self._cache.invalidate([tokens.digest(sesion.Token_Sesion).encode()])
        if fields:
            self._metrics.add(UPDATED)
            changed = ", ".join(fields)
            fingerprint = tokens.fingerprint(sesion.Token_Sesion)
            session = sesion.ID_Sesion, sesion.ID_Usuario, fingerprint
            _log("changed", *session, actor, changed=changed)

    def ended(self, reason: str, base: str, entries: list[Any], actor: str = "") -> None:
        """``entries``: the sessions that a script has ended, as delete() in lua/writing.lua returns
        them; ``base``: what their keys begin with; ``actor``: who asked for that, if anything did.
        Raises MALFORMED_REPLY_ERRORS."""
        if not entries:
            return
        self._tombstones.add([f"{base}{SESSION}{digest.decode()}" for digest, _, _ in entries])
        if self._cache is not None:
            self._cache.invalidate([digest for digest, _, _ in entries])
        self._metrics.add(ENDED, reason, len(entries))
        self._waiting.extend((reason, actor, entry) for entry in entries)
        if not self._scheduled:
            self._write_slice()

    def ended_by(self, reason: str, base: str, reply: Any) -> int:
        """The same, of the reply of a script that ends sessions: the actor, and those that ended.
        Return how many."""
        actor, *entries = reply
        self.ended(reason, base, entries, actor.decode())
        return len(entries)

    def flush(self) -> None:
        """Write the lines that are left."""
        while self._waiting:
            self._write_line()

    def _write_slice(self) -> None:
        self._scheduled = False
        for _ in range(min(LINES_AT_ONCE, len(self._waiting))):
            self._write_line()
        if self._waiting:
            self._scheduled = True
            # Not call_soon(): uvloop runs all that is ready before it polls its sockets again.
            asyncio.get_running_loop().call_later(0, self._write_slice)

    def _write_line(self) -> None:
        reason, actor, (digest, ID_Sesion, ID_Usuario) = self._waiting.popleft()
        fingerprint = tokens.fingerprint_of_digest(digest.decode())
        _log("ended", number(ID_Sesion), number(ID_Usuario), fingerprint, actor, reason=reason)


def _log(
    event: str,
    ID_Sesion: int | None,
    ID_Usuario: int | None,
    fingerprint: str,
    actor: str,
    **detail: str,
) -> None:
    """``detail``: what follows a colon, under the name of its field in JSON; if anything does.
    ``actor``: who asked for it; empty when nothing did."""
    why = "".join(f": {text}" for text in detail.values())
    if actor:
        why += f" by {actor}"
        detail["actor"] = actor
    logger.info(
        "%s session %s of user %s, ses_#%s%s",
        *(event, ID_Sesion, ID_Usuario, fingerprint, why),
        extra={
            "event": event,
            "ID_Sesion": ID_Sesion,
            "ID_Usuario": ID_Usuario,
            "token": f"ses_#{fingerprint}",
            **detail,
        },
    )
