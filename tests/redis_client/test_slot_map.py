"""CLUSTER SLOTS, read."""

import contextlib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesiones.redis_client.cluster import masters_of

hosts = st.one_of(st.none(), st.just(b""), st.from_regex(rb"[a-z0-9.:-]{1,20}", fullmatch=True))
ports = st.integers(1, 65535)
nodes = st.tuples(hosts, ports, st.just(b"name")).map(list)


@given(st.lists(st.integers(0, 16384), min_size=2, max_size=9, unique=True), st.data())
def test_slot_map_names_the_master_of_each_slot(bounds: list[int], data: st.DataObject) -> None:
    bounds.sort()
    reply: list[list[Any]] = [
        [first, last - 1, *data.draw(st.lists(nodes, min_size=1, max_size=3))]
        for first, last in pairwise(bounds)
    ]
    masters, names = masters_of(reply, "asked")
    assert len(masters) == 16384
    for first, last, *entries in reply:
        addresses = [((host or b"asked").decode(), port) for host, port, *_ in entries]
        assert set(masters[first : last + 1]) == {addresses[0]}
        assert names.keys() >= set(addresses)
    assert masters.count(None) == 16384 - (bounds[-1] - bounds[0])


@pytest.mark.parametrize(
    ("host", "metadata", "address"),
    [
        (b"?", [[b"ip", b"10.0.0.1"]], "10.0.0.1"),
        (b"?", [[b"hostname", b"", b"ip", b""]], "asked"),
        (b"?", [], "asked"),
        (b"name.example", [[b"ip", b"10.0.0.1"]], "name.example"),
        (None, [[b"ip", b"10.0.0.1"]], "asked"),
    ],
)
def test_unknown_hostname_is_replaced_by_the_address(
    host: bytes | None, metadata: Any, address: str
) -> None:
    masters, names = masters_of([[0, 1, [host, 7000, b"n", *metadata]]], "asked")
    assert masters[:3] == [(address, 7000), (address, 7000), None]
    assert names == {(address, 7000): "n"}


anything = st.recursive(
    st.none() | st.integers() | st.binary(max_size=5), lambda inner: st.lists(inner, max_size=4)
)


@given(anything | st.lists(st.tuples(st.integers(-2, 16386), st.integers(-2, 16386), anything)))
def test_reply_that_is_no_slot_map_is_refused(reply: Any) -> None:
    with contextlib.suppress(ValueError):
        masters, names = masters_of(reply, "asked")
        assert len(masters) == 16384
        assert names.keys() >= set(masters) - {None}
