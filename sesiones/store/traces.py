"""The traces of sessions that are gone: when and why each ended or expired."""

import logging
from typing import Any, NamedTuple

from sesiones import tokens
from sesiones.store.records import number

logger = logging.getLogger("sesiones.store")


class Trace(NamedTuple):
    """A session that is gone. Redis keeps traces for SESIONES_WHY_SECONDS."""

    fingerprint: str
    """The first 8 hex digits of the token's SHA-256: ``ses_#<fingerprint>`` in the log."""
    when: int
    """When it ended or expired, in epoch seconds."""
    reason: str
    """`expired`, or as in the log."""
    ID_Sesion: int | None
    """None for one that has expired, and one whose record was malformed; so are the next two."""
    ID_Usuario: int | None
    """Known of one that has expired."""
    Ultima_Actividad: int | None
    actor: str
    """Who ended it; empty when nothing asked for it."""


def trace_of(text: bytes, score: bytes) -> Trace | None:
    """The trace of a member of the sorted set, and its score (lua/session.lua). A malformed one is
    logged, and None: it must not hide the others."""
    try:
        digest, reason, usuario, id_, uso, actor = text.decode().split(" ", 5)
        return Trace(
            tokens.fingerprint_of_digest(digest),
            int(float(score)),
            reason,
            number(id_.encode()),
            number(usuario.encode()),
            number(uso.encode()),
            actor,
        )
    except (ValueError, OverflowError) as error:  # the score may be infinite
        logger.error("bad trace %r: %s", text, error)
        return None


def is_live(entry: list[Any]) -> bool:
    """Whether an entry of lua/why.lua is a live session's: it has an expiry, too."""
    return len(entry) == 3
