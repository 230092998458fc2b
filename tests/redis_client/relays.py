"""Relays before every data server of a URL."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from sesiones.redis_client import cluster, single
from tests.harness.relay import Filter, Relay


@contextmanager
def relays_before(
    url: str, monkeypatch: pytest.MonkeyPatch, new_filter: Callable[[], Filter] | None = None
) -> Iterator[tuple[str, dict[int, Relay]]]:
    """The URL through relays, and the relay of each server by its port, once it is known. What the
    nodes of a Cluster and the Sentinels say of addresses leads to the relays, too."""
    relays: dict[int, Relay] = {}
    with ExitStack() as stack:

        def relay(address: tuple[str, int]) -> tuple[str, int]:
            host, port = address
            if port not in relays:
                relays[port] = stack.enter_context(Relay(port, new_filter))
            return host, relays[port].port

        scheme, _, rest = url.partition("://")
        if scheme == "redis+sentinel":
            really = single.Sentinel.master

            async def master(self: single.Sentinel, name: str) -> tuple[str, int]:
                return relay(await really(self, name))

            monkeypatch.setattr(single.Sentinel, "master", master)
        else:
            ports = [int(each.rpartition(":")[2]) for each in rest.split(",")]
            relayed = [f"127.0.0.1:{relay(('127.0.0.1', port))[1]}" for port in ports]
            url = f"{scheme}://{','.join(relayed)}"
            address_of = cluster._address

            def address(node: Any, asked: str) -> tuple[str, int]:
                return relay(address_of(node, asked))

            monkeypatch.setattr(cluster, "_address", address)
        yield url, relays
