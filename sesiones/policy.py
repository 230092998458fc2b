"""The session policy: how long sessions live, and how many a user may have. It bounds what a login
may ask for."""

from dataclasses import dataclass
from typing import Literal

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
        return {
            "Vida_Maxima": (1, LIFE_MAX_SECONDS),
            "Ventana": (1, self.max_seconds if Vida_Maxima is None else Vida_Maxima),
            "Cerrar_Otras": (0, 1),
            "Max_Sesiones": (1, self.max_per_user),
            "Sustituye": (1, 2**53 - 1),  # as an ID_Sesion
        }
