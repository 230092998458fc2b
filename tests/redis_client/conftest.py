"""Fixtures of the tests of the Redis client."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sesiones.redis_client import connection
from tests.harness.virtual_loop import CLOCK


@pytest.fixture
async def no_complaint() -> AsyncIterator[list[dict[str, Any]]]:
    """Nothing is left for the event loop to complain of: each would be lines in a log."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    yield complaints
    gc.collect()
    await asyncio.sleep(0)
    assert not complaints


@pytest.fixture
def virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection reads the clock of a VirtualLoop."""
    monkeypatch.setattr(connection, "time", CLOCK)
