"""Run last: docs/gateways/README.md says what ran, and nothing got through unseen."""

import pytest

from tests.gateways import table
from tests.gateways.conftest import Application


def test_nothing_arrived_without_identity(application: Application) -> None:
    assert not application.without_identity


def test_table(pytestconfig: pytest.Config) -> None:
    rendered = table.render()
    if pytestconfig.getoption("--write-table"):
        table.write(rendered)
    assert table.committed() == rendered, "make gateways-table writes it"
