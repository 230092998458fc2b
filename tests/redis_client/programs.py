"""What the tests of programs have in common: random steps on a connection, played and judged."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.harness.stores import EXAMPLES

QUICK = settings(
    max_examples=20 * EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""Of a property whose examples take about a millisecond."""


class _Unprintable:
    def __str__(self) -> str:
        raise ZeroDivisionError


UNPACKABLE: list[Any] = [
    None,
    True,
    "\ud800",
    _Unprintable(),
    [],
    b"x".join,
    ("a",),
    {"a": 1},
    bytearray(b"x"),
]
"""Arguments of a command that no bytes can be made of."""


def found_out(programs: st.SearchStrategy[Any], played: Callable[[Any], None]) -> None:
    """Assert that one of many programs fails."""

    @settings(
        max_examples=5000,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(programs)
    def search(program: Any) -> None:
        played(program)

    with pytest.raises((AssertionError, asyncio.InvalidStateError, pytest.fail.Exception)):
        search()
