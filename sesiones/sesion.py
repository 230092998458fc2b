"""The session object, the rules of its fields, and the outcomes of operations on it. The API and
SessionStore share them."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple

import orjson

from sesiones import tokens
from sesiones.policy import LIFE_MAX_SECONDS, SessionPolicy

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


def valid_integer(field: str, value: object, bounds: tuple[int, int] | None = None) -> int:
    """The value as a plain int, which formats as its digits, when it is one that the field may
    have, within ``bounds`` or else its BOUNDS. Raises TypeError for anything but an int (a bool is
    none), ValueError out of bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{field} must be an int")
    number = int.__index__(value)  # not what a subclass such as an Enum makes of itself
    low, high = BOUNDS[field] if bounds is None else bounds
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


def valid_field(field: str, value: object) -> Any:
    """The value as a plain int or str, when the field may have it. Raises TypeError or
    ValueError."""
    if field in BOUNDS:
        return valid_integer(field, value)
    return valid_device(value) if field == "Dispositivo" else valid_text(field, value)


class Sesion(NamedTuple):
    """A live session as Redis holds it. All times are Redis's, in epoch seconds.

    The names and the order of the fields here are those of the API. BOUNDS says which of them are
    integers. The class is a tuple because one is made for every check, and a frozen dataclass takes
    three times as long. Its repr() and str() show the token's fingerprint instead of the token.
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

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: object) -> Any:
        # FastAPI would answer the tuple as an array, which has the token.
        raise TypeError("a Sesion has the token: answer a SessionModel (sesiones.clients.fastapi)")

    def validated(self) -> "Sesion":
        """The session with its fields as plain ints and strs. Raises TypeError or ValueError for
        a field that the API would refuse; any str may be a Token_Sesion."""
        return Sesion._make(map(valid_field, self._fields, self))

    def to_json(self) -> bytes:
        """The object of the API, its eight members in the order of the fields above."""
        # Each check of `self` runs this. Spelled out, it takes two thirds of the time of _asdict().
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


@dataclass(frozen=True, slots=True)
class Login:
    """What a login may ask for beside a user and a device. Every field may be left out."""

    Ventana: int | None = None
    """The session's window in seconds, instead of the policy's."""
    Vida_Maxima: int | None = None
    """The session's own maximum life in seconds, instead of the policy's."""
    Token_Anterior: str | None = None
    """The token of a session, of any user, that this one replaces. It ends."""
    Cerrar_Otras: int = 0
    """1 ends every other session of the user."""
    Max_Sesiones: int | None = None
    """How many sessions the user may have at this login, instead of the policy's limit."""
    Sustituye: int | None = None
    """The ID_Sesion of a session of the user that this one replaces. It ends."""

    def resolved(self, policy: SessionPolicy) -> "Login":
        """The login with plain ints and strs, its window and its limit filled in. Raises TypeError
        or ValueError for a field that the API would refuse; any str may be a Token_Anterior."""
        life = _optional("Vida_Maxima", self.Vida_Maxima, (1, LIFE_MAX_SECONDS))
        bounds = policy.login_bounds(life)
        window = _optional("Ventana", self.Ventana, bounds["Ventana"])
        if window is None:
            window = min(policy.idle_seconds, life or policy.max_seconds)
        limit = _optional("Max_Sesiones", self.Max_Sesiones, bounds["Max_Sesiones"])
        previous = self.Token_Anterior
        return Login(
            Ventana=window,
            Vida_Maxima=life,
            Token_Anterior=None if previous is None else valid_text("Token_Anterior", previous),
            Cerrar_Otras=valid_integer("Cerrar_Otras", self.Cerrar_Otras, bounds["Cerrar_Otras"]),
            Max_Sesiones=policy.max_per_user if limit is None else limit,
            Sustituye=_optional("Sustituye", self.Sustituye, bounds["Sustituye"]),
        )


def _optional(field: str, value: object, bounds: tuple[int, int]) -> int | None:
    return None if value is None else valid_integer(field, value, bounds)


NO_LOGIN = Login()
"""A login that asks for nothing more than a session."""


class UserSession(NamedTuple):
    """A live session as its user's list has it: without its token, which Redis does not hold."""

    ID_Sesion: int
    ID_Usuario: int | None
    """None in SessionClient.list_sessions(), because the API's list does not name the user."""
    fingerprint: str | None
    """The first 8 hex digits of the token's SHA-256: ``ses_#<fingerprint>`` in the log. None in a
    SessionClient's lists: the API has nothing of a token in a list."""
    Fecha_Inicio: int
    Fecha_Expiracion: int
    Estado_Sesion: int
    Ultima_Actividad: int
    Dispositivo: str
    Actual: bool | None = None
    """Whether it is the caller's own; None where the caller came without a token."""

    def to_dict(self) -> dict[str, int | str | bool]:
        """The members of the API's list, in its order."""
        hidden = ("ID_Usuario", "fingerprint") + (("Actual",) if self.Actual is None else ())
        return {name: value for name, value in self._asdict().items() if name not in hidden}


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


BAD_DATES: dict[Literal["window", "lifetime", "past"], str] = {
    "window": "debe ser posterior a Ultima_Actividad",
    "lifetime": "supera la vida máxima de la sesión",
    "past": "dejaría la sesión ya expirada",
}
"""What the API says of Fecha_Expiracion, for each reason of a BadDates."""


class LimitReached(Exception):
    """The user has as many sessions as allowed, and the policy is to refuse one more. Nothing has
    ended."""

    def __init__(self, sessions: "list[UserSession]") -> None:
        super().__init__(f"the user has {len(sessions)} sessions")
        self.sessions = sessions
        """The user's live sessions, in the order of a list."""


class StoreUnavailable(Exception):
    """Redis cannot answer, or refuses: the operation may or may not have happened."""
