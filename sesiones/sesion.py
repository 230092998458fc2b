"""The session object."""

from typing import NamedTuple

import orjson

INT_MAX = 2**53 - 1
"""The largest integer that every JSON implementation keeps exact (RFC 7493, 2.2)."""


class Sesion(NamedTuple):
    """A live session as Redis holds it. All times are Redis's, in epoch seconds.

    A tuple, because one is made for every check: a frozen dataclass takes three times as long.
    """

    ID_Sesion: int
    ID_Usuario: int
    Token_Sesion: str
    Fecha_Inicio: int
    Fecha_Expiracion: int
    Estado_Sesion: int
    Ultima_Actividad: int
    Dispositivo: str

    def to_json(self) -> bytes:
        """The object of the API, its eight members in the order of the fields above."""
        # Spelled out, it takes two thirds of _asdict().
        return orjson.dumps(
            {
                "ID_Sesion": self.ID_Sesion,
                "ID_Usuario": self.ID_Usuario,
                "Token_Sesion": self.Token_Sesion,
                "Fecha_Inicio": self.Fecha_Inicio,
                "Fecha_Expiracion": self.Fecha_Expiracion,
                "Estado_Sesion": self.Estado_Sesion,
                "Ultima_Actividad": self.Ultima_Actividad,
                "Dispositivo": self.Dispositivo,
            }
        )
