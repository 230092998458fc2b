"""The conformance table sees a server that takes anything."""

from types import SimpleNamespace
from typing import Any

import pytest

from scripts.chaos.h1spec import REFUSED, judge
from tests.harness.service import Service

pytestmark = pytest.mark.slow


def test_a_lenient_server_fails(service: Service) -> None:
    lenient: Any = SimpleNamespace(
        raw=lambda _: b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", connect=service.connect
    )
    failed, cases = judge(lenient, "ses_")
    assert {name.partition(":")[0] for name in failed} >= REFUSED.keys()
    assert len(failed) < cases  # the others are as they should be
