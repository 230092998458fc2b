"""What doctor found, and what to do about it."""

from dataclasses import asdict, dataclass
from typing import Literal

from redis.exceptions import NoPermissionError

PERMISSION_ADVICE = "Allow it: docs/acl.conf has users for the service and for doctor."

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was examined, its state, and advice where that is not well."""

    level: Level
    subject: str
    text: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def to_text(self) -> str:
        mark = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}[self.level]
        text = f"{mark}  {self.subject}: {self.text}".replace("\n", "\n           ")
        return text + (f"\n         -> {self.advice}" if self.advice else "")


def unreachable(error: Exception) -> Finding:
    """The finding for an error that ended the examination of a server."""
    if isinstance(error, NoPermissionError):
        return Finding("error", "permissions", str(error), PERMISSION_ADVICE)
    return Finding(
        "error",
        "connection",
        f"Redis cannot be asked: {str(error) or type(error).__name__}",
        "Check SESIONES_REDIS_URL, that the server runs, its password and the network.",
    )
