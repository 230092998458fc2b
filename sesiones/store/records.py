"""Replies of the scripts -> sessions."""

import logging
from typing import Any

from sesiones import tokens
from sesiones.sesion import Sesion

logger = logging.getLogger("sesiones.store")


def session_of(
    token: str, reply: list[Any] | bytes | None, fingerprint: str | None = None
) -> Sesion | None:
    """The session of a script's reply (read() in lua/session.lua). A record that is none is an
    error of its own: logged, by the token's fingerprint, and as good as absent."""
    if reply is None:
        return None
    try:
        if isinstance(reply, bytes):
            raise ValueError(reply.decode(errors="replace"))
        id_, usuario, inicio, estado, actividad, _, dispositivo, expiracion = reply
        if estado not in (b"0", b"1"):
            raise ValueError("estado is neither 0 nor 1")
        return Sesion(
            int(id_),
            int(usuario),
            token,
            int(inicio),
            expiracion,
            int(estado),
            int(actividad),
            dispositivo.decode(),
        )
    except ValueError as error:
        name = fingerprint or tokens.fingerprint(token)
        logger.error("bad record of session %s: %s", name, error)
        return None


def number(text: bytes) -> int | None:
    """None for a record that is no session's."""
    return int(text) if text.isdigit() and len(text) <= 16 else None
