"""The session policy: how long sessions live, and how many a user may have."""

from dataclasses import dataclass


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
    """How many sessions a user may have. One more ends the session that expires first."""
