"""Replies of the scripts -> sessions."""

import logging

import orjson

from sesiones import tokens
from sesiones.sesion import INT_MAX, Sesion

logger = logging.getLogger("sesiones.store")


_COMMAS = b"," * 5
"""What is left of a record's numbers without their digits."""


def session_of(
    token: str, text: bytes | None, expiry: int | None = None, fingerprint: str | None = None
) -> Sesion | None:
    """The session of a script's reply (fetch() in lua/session.lua). A record that is none is an
    error of its own: logged, by the token's fingerprint, and as good as absent."""
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
        name = fingerprint or tokens.fingerprint(token)
        logger.error("bad record of session %s: %s", name, error)
        return None


def number(text: bytes) -> int | None:
    """None for a record that is no session's."""
    return int(text) if text.isdigit() and len(text) <= 16 else None
