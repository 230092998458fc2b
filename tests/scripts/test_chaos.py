"""The scenarios of scripts/chaos in their short forms."""

import pytest

from scripts.chaos import NotInstalledError
from scripts.chaos.__main__ import SCENARIOS

pytestmark = pytest.mark.slow


MARKS = {
    "cluster": [pytest.mark.cluster],
    "sentinel": [pytest.mark.sentinel],
    "order": [pytest.mark.cluster, pytest.mark.sentinel],
    "cache": [pytest.mark.cluster, pytest.mark.sentinel],
    "silence": [pytest.mark.cluster, pytest.mark.sentinel],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS.get(name, ())) for name in SCENARIOS]
)
def test_scenario_meets_every_bar(name: str) -> None:
    try:
        bars = list(SCENARIOS[name](True))
    except NotInstalledError as error:
        pytest.skip(str(error))
    assert bars
    assert [bar for bar in bars if not bar.met] == []
