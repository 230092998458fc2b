"""The last test of a gateway that uses its stand. Its docstring is its row in the table."""

import time

from tests.gateways.client import EventStream

LONG_SECONDS = 16.0
"""Longer than Envoy's default for a whole response, 15 s."""


def test_long_stream(long_stream: EventStream) -> None:
    """a stream of events goes on for more than 15 s"""
    while long_stream.read() < long_stream.opened + LONG_SECONDS:
        pass
    assert time.monotonic() - long_stream.opened >= LONG_SECONDS
