"""The session policy: one set of limits for the settings and for the store."""

from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest

from sesiones.policy import SessionPolicy
from sesiones.settings import Settings


def test_policy_defaults_are_those_of_the_settings() -> None:
    assert Settings().policy == SessionPolicy()


def test_policy_has_what_the_settings_say() -> None:
    given: dict[str, Any] = {
        "idle_seconds": 5,
        "max_seconds": 6,
        "touch_seconds": 7,
        "max_per_user": 8,
        "at_limit": "refuse",
    }
    settings = Settings(**given)
    assert asdict(settings.policy) == given


def test_policy_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        SessionPolicy().idle_seconds = 5  # type: ignore[misc]
