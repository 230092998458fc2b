"""The scenarios of scripts/chaos in their short forms."""

import pytest

from scripts.chaos import NotInstalledError
from scripts.chaos.__main__ import SCENARIOS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_promise_is_kept(name: str) -> None:
    try:
        bars = list(SCENARIOS[name](True))
    except NotInstalledError as error:
        pytest.skip(str(error))
    assert bars
    assert [bar for bar in bars if not bar.met] == []
