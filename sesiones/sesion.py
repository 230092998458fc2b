"""The session object."""

from dataclasses import asdict, dataclass

import orjson

INT_MAX = 2**53 - 1
"""The largest integer that every JSON implementation keeps exact (RFC 7493, 2.2)."""


@dataclass(frozen=True, slots=True)
class Sesion:
    """A live session as Redis holds it. All times are Redis's, in epoch seconds."""

    ID_Sesion: int
    ID_Usuario: int
    Token_Sesion: str
    Fecha_Inicio: int
    Fecha_Expiracion: int
    Estado_Sesion: int
    Ultima_Actividad: int
    Dispositivo: str

    @property
    def active(self) -> bool:
        """Whether the session passes a check; an inactive one fails until a PUT activates it."""
        return self.Estado_Sesion == 1

    def to_json(self) -> bytes:
        """The object of the API, its eight members in the order of the fields above."""
        return orjson.dumps(asdict(self))
