"""The session policy: how long sessions live, and how many a user may have. It bounds what a login
may ask for.

Settings import this module, and must stay free of orjson. So the functions import sesion.py when
they are called.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sesiones.sesion import Login

LIFE_MAX_SECONDS = 400 * 24 * 3600
"""The longest Vida_Maxima."""


@dataclass(frozen=True)
class SessionPolicy:
    """The policy of one store. Its defaults are the service's."""

    idle_seconds: int = 1800
    """The window of a new session: how long it lives unused."""
    max_seconds: int = 43200
    """How long a session lives at the most."""
    touch_seconds: int = 1
    """How old Ultima_Actividad must be before a check slides the session; 0: every check does."""
    max_per_user: int = 1000
    """How many sessions a user may have."""
    at_limit: Literal["end", "refuse"] = "end"
    """Whether one more session ends the one that expires first, or is refused."""

    def login_bounds(self, Vida_Maxima: int | None) -> dict[str, tuple[int, int]]:
        """The least and the greatest value of each integer field of a login with that
        Vida_Maxima."""
        from sesiones.sesion import INT_MAX

        return {
            "Vida_Maxima": (1, LIFE_MAX_SECONDS),
            "Ventana": (1, self.max_seconds if Vida_Maxima is None else Vida_Maxima),
            "Cerrar_Otras": (0, 1),
            "Max_Sesiones": (1, self.max_per_user),
            "Sustituye": (1, INT_MAX),
        }

    def resolve(self, login: "Login") -> "Login":
        """The login with plain ints and strs, its window and its limit filled in. Raises TypeError
        or ValueError for a field that the API would refuse; any str may be a Token_Anterior."""
        from sesiones.sesion import Login, valid_integer, valid_text

        if not isinstance(login, Login):
            raise TypeError("the login must be a Login")
        life = _optional("Vida_Maxima", login.Vida_Maxima, (1, LIFE_MAX_SECONDS))
        bounds = self.login_bounds(life)
        window = _optional("Ventana", login.Ventana, bounds["Ventana"])
        limit = _optional("Max_Sesiones", login.Max_Sesiones, bounds["Max_Sesiones"])
        previous = login.Token_Anterior
        return Login(
            Ventana=min(self.idle_seconds, life or self.max_seconds) if window is None else window,
            Vida_Maxima=life,
            Token_Anterior=None if previous is None else valid_text("Token_Anterior", previous),
            Cerrar_Otras=valid_integer("Cerrar_Otras", login.Cerrar_Otras, (0, 1)),
            Max_Sesiones=self.max_per_user if limit is None else limit,
            Sustituye=_optional("Sustituye", login.Sustituye, bounds["Sustituye"]),
        )


def _optional(field: str, value: object, bounds: tuple[int, int]) -> int | None:
    from sesiones.sesion import valid_integer

    return None if value is None else valid_integer(field, value, bounds)
