"""What a test sees of sessions that ended: which keys are left, and what the log says."""

import pytest
from redis import Redis

from sesiones.sesion import Sesion
from tests.harness.records import session_key


def exists(redis: Redis, *sesiones: Sesion) -> list[bool]:
    return [bool(redis.exists(session_key(sesion.Token_Sesion))) for sesion in sesiones]


def endings(caplog: pytest.LogCaptureFixture) -> dict[int, str]:
    """The reason of each session that has ended, by its ID_Sesion."""
    ended = [record for record in caplog.records if getattr(record, "event", "") == "ended"]
    reasons = {record.ID_Sesion: record.reason for record in ended}  # type: ignore[attr-defined]
    assert len(reasons) == len(ended)
    return reasons
