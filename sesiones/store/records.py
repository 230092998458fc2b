"""Replies of the scripts -> sessions."""

import logging
from typing import Any

import orjson

from sesiones import tokens
from sesiones.sesion import INT_MAX, Sesion, UserSession
from sesiones.store.keys import SESSION
from sesiones.store.tombstones import Tombstones

logger = logging.getLogger("sesiones.store")

_COMMAS = b"," * 5
"""What is left of six numbers with commas between them when their digits are removed. JSON would
also accept a minus, a fraction or an exponent."""


def session_of(token: str, text: bytes | None, expiry: int | None = None) -> Sesion | None:
    """The session of a token, from a script's reply (fetch() in lua/session.lua). A malformed
    record is logged, with the token's fingerprint, and counts as absent."""
    if text is None:
        return None
    try:
        if expiry is None:
            raise ValueError(text.decode(errors="replace"))
        # RECORD of lua/session.lua. As JSON its numbers take half the time of a pattern and int().
        numbers, _, dispositivo = text.partition(b":")
        numbers = numbers.replace(b" ", b",")
        inicio, uso, _, estado, id_, usuario = orjson.loads(b"[%b]" % numbers)
        if (
            numbers.translate(None, b"0123456789") != _COMMAS
            or estado > 1
            or id_ > INT_MAX
            or usuario > INT_MAX
            or inicio + uso > INT_MAX
            or not dispositivo
        ):
            raise ValueError("the field 1 is not a session")
        # Not Sesion(): its __new__ is a call more, in Python.
        fields = id_, usuario, token, inicio, expiry, estado, inicio + uso, dispositivo.decode()
        return tuple.__new__(Sesion, fields)
    except (TypeError, ValueError) as error:
        name = tokens.masked(token)
        logger.error("bad record of session %s: %s", name, error, extra={"token": name})
        return None


def window_of(text: bytes) -> int:
    """The window in seconds of a session, from the text that session_of() accepts."""
    return int(text.split(b" ", 3)[2])


def user_session_of(digest: str, text: bytes, expiry: int) -> UserSession | None:
    """The session of a digest, from the same reply. Of its token only the fingerprint is known."""
    fingerprint = tokens.fingerprint_of_digest(digest)
    sesion = session_of(f"ses_#{fingerprint}", text, expiry)
    if sesion is None:
        return None
    return UserSession(sesion.ID_Sesion, sesion.ID_Usuario, fingerprint, *sesion[3:])


def user_sessions_of(
    base: str, entries: list[Any], tombstones: Tombstones
) -> tuple[list[UserSession], list[str]]:
    """The sessions of a list (lua/list.lua), the most recently used first, then the newest first;
    and the keys of those that are left out, because they have ended or are malformed. ``base``:
    what their keys begin with."""
    sessions, left_out = [], []
    for digest, text, expiry, _ in entries:
        key = f"{base}{SESSION}{digest.decode()}"
        session = None if key in tombstones else user_session_of(digest.decode(), text, expiry)
        if session is None:
            left_out.append(key)
        else:
            sessions.append(session)
    sessions.sort(key=lambda each: (-each.Ultima_Actividad, -each.ID_Sesion))
    return sessions, left_out


def number(text: bytes) -> int | None:
    """An integer of an ended session (delete() in lua/writing.lua); None when its record was
    malformed."""
    return int(text) if text.isdigit() and len(text) <= 16 else None
