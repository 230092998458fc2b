"""The session object, the rules of its fields, and the outcomes of operations on it. The API and
SessionStore share them."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

import orjson

from sesiones import tokens

INT_MAX = 2**53 - 1
"""The largest integer that every JSON implementation keeps exact (RFC 7493, 2.2)."""

BOUNDS = {
    "ID_Sesion": (1, INT_MAX),
    "ID_Usuario": (0, INT_MAX),
    "Fecha_Inicio": (0, INT_MAX),
    "Fecha_Expiracion": (0, INT_MAX),
    "Estado_Sesion": (0, 1),
    "Ultima_Actividad": (0, INT_MAX),
}
"""The least and the greatest value of each integer field."""
DEVICE_MAX_CHARACTERS = 512
_FORBIDDEN_IN_DEVICE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # Cc and surrogates


def valid_integer(field: str, value: object) -> int:
    """The value as a plain int, which formats as its digits, when it is one that the field may
    have. Raises TypeError for anything but an int (a bool is none), ValueError out of bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{field} must be an int")
    number = int.__index__(value)  # not what a subclass such as an Enum makes of itself
    low, high = BOUNDS[field]
    if not low <= number <= high:
        raise ValueError(f"{field} must be from {low} to {high}")
    return number


def valid_text(field: str, value: object) -> str:
    """The value as a plain str. Raises TypeError for anything but a str."""
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a str")
    return str.__str__(value)


def valid_device(value: object) -> str:
    """The value as a plain str, when it is a Dispositivo. Raises TypeError or ValueError."""
    text = valid_text("Dispositivo", value)
    if not 1 <= len(text) <= DEVICE_MAX_CHARACTERS or _FORBIDDEN_IN_DEVICE.search(text):
        raise ValueError(
            f"Dispositivo must have 1 to {DEVICE_MAX_CHARACTERS} characters, none of them a "
            "control character or a lone surrogate"
        )
    return text


class Sesion(NamedTuple):
    """A live session as Redis holds it. All times are Redis's, in epoch seconds.

    A tuple, because one is made for every check: a frozen dataclass takes three times as long.
    Its repr() and str() show the token's name in the log instead of the token.
    """

    ID_Sesion: int
    ID_Usuario: int
    Token_Sesion: str
    Fecha_Inicio: int
    Fecha_Expiracion: int
    Estado_Sesion: int
    Ultima_Actividad: int
    Dispositivo: str

    def __repr__(self) -> str:
        shown = self._asdict() | {"Token_Sesion": tokens.masked(self.Token_Sesion)}
        fields = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({fields})"

    def validated(self) -> "Sesion":
        """The session with its fields as plain ints and strs. Raises TypeError or ValueError for
        a field that the API would refuse; any str may be a Token_Sesion."""
        integers = {field: valid_integer(field, getattr(self, field)) for field in BOUNDS}
        return Sesion(
            **integers,
            Token_Sesion=valid_text("Token_Sesion", self.Token_Sesion),
            Dispositivo=valid_device(self.Dispositivo),
        )

    def to_json(self) -> bytes:
        """The object of the API, its eight members in the order of the fields above."""
        # Spelled out, it takes half the time of _asdict().
        id_, usuario, token, inicio, expiracion, estado, actividad, dispositivo = self
        return orjson.dumps(
            {
                "ID_Sesion": id_,
                "ID_Usuario": usuario,
                "Token_Sesion": token,
                "Fecha_Inicio": inicio,
                "Fecha_Expiracion": expiracion,
                "Estado_Sesion": estado,
                "Ultima_Actividad": actividad,
                "Dispositivo": dispositivo,
            }
        )


class UserSession(NamedTuple):
    """A live session as its user's list has it: without its token, which Redis does not hold."""

    ID_Sesion: int
    ID_Usuario: int
    fingerprint: str
    """The first 8 hex digits of the token's SHA-256: ``ses_#<fingerprint>`` in the log."""
    Fecha_Inicio: int
    Fecha_Expiracion: int
    Estado_Sesion: int
    Ultima_Actividad: int
    Dispositivo: str


class Refusal(Enum):
    """Why a session was not ended."""

    UNAUTHENTICATED = -1
    """The caller's own session is not live and active."""
    FORBIDDEN = -2
    """The designated session is another user's."""


@dataclass(frozen=True, slots=True)
class Immutable:
    """An update was refused: it changes fields that never change."""

    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BadDates:
    """An update was refused: its Fecha_Expiracion is not after its Ultima_Actividad (window),
    beyond the absolute lifetime (lifetime), or would have passed already (past)."""

    reason: Literal["window", "lifetime", "past"]


class StoreUnavailable(Exception):
    """Redis cannot answer, or refuses: the operation may or may not have happened."""
