"""The scenarios of scripts/chaos in their short forms."""

import pytest

from scripts.chaos.__main__ import SCENARIOS

ELSEWHERE = {"races"}
"""The suite plays these as tests of their own."""


@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - ELSEWHERE))
def test_every_promise_is_kept(name: str) -> None:
    bars = list(SCENARIOS[name](True))
    assert bars
    assert [bar for bar in bars if not bar.met] == []
