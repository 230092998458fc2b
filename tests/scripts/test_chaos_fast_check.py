"""The comparison with Starlette sees a fast check that takes too much."""

import itertools
import re
from typing import Any
from unittest.mock import patch

import pytest

from scripts.chaos.fast_check import NearCopies, compare
from sesiones.http.fast_check import _ONLY_PLAIN_VALUE, FastCheckProtocol
from sesiones.http.repeats import Repeat, Repeats
from sesiones.http.templates import TOKEN, Kind, RequestTemplates
from sesiones.store.near_cache import Entry
from tests.harness.in_process import FixedStore
from tests.harness.stores import KEY

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("what", "flaw"),
    [
        (
            "sesiones.http.fast_check._BEARER_TOKEN",
            re.compile(rb"[A-Za-z]+ *(ses_[A-Za-z0-9_-]{45})"),
        ),
        (
            "sesiones.http.fast_check.VERIFY_TARGET",
            re.compile(rb"/sesiones/verificar.*", re.DOTALL),
        ),
        (
            "sesiones.http.fast_check._ONLY_PLAIN_VALUE",
            _ONLY_PLAIN_VALUE | {b"connection": b"close"},
        ),
        ("sesiones.http.fast_check.HOST", re.compile(rb".*", re.DOTALL)),
        ("sesiones.http.responses._SELF", b"HTTP/1.1 200 OK\r\n%b%d%d%d%d%b\r\n%b"),
        ("sesiones.http.fast_check.FastCheckProtocol._is_answering", lambda _: False),
    ],
)
def test_fast_check_that_is_too_lenient_differs(what: str, flaw: Any) -> None:
    with patch(what, flaw), patch("tests.harness.fuzzer.VIOLATIONS_MAX", 1):
        assert compare("flaw", 12_000).violations


def test_template_that_ignores_what_stands_around_the_token_differs() -> None:
    class Lenient(RequestTemplates):
        def match(self, data: bytes) -> tuple[bytes, Kind] | None:
            token = TOKEN.search(data)
            kinds = [self._kinds[one] for one in self._kinds if data.startswith(one[0])]
            return (token[0], kinds[0]) if token and kinds else None

    with patch.object(FastCheckProtocol, "templates", Lenient()):
        assert compare("flaw", 12_000).violations


@pytest.mark.parametrize(
    ("what", "flaw"),
    [
        ("_ANY_VALUE", rb"[^\r]*+"),
        ("_LITERAL", set()),
        ("HOST", re.compile(rb"[^\r\n]*")),
        ("VERIFY_TARGET", re.compile(rb"/sesiones/verificar[^ ]*")),
    ],
)
def test_pattern_that_matches_too_much_differs(what: str, flaw: Any) -> None:
    with (
        patch(f"sesiones.http.patterns.{what}", flaw),
        patch("tests.harness.fuzzer.VIOLATIONS_MAX", 1),
    ):
        assert compare("flaw", 12_000).violations


def test_answer_from_memory_to_a_request_of_a_pattern_of_another_kind_differs() -> None:
    really = Repeats.keep

    def keep(self: Repeats, request: Repeat, entry: Entry, response: bytes) -> None:
        really(self, request, entry, response)
        if not isinstance(request, bytes):
            for verify, is_head_method, slides in itertools.product(*3 * [(False, True)]):
                kind = verify, is_head_method, False, slides
                really(self, (request[0], kind), entry, response)

    with (
        patch.object(Repeats, "keep", keep),
        patch("tests.harness.fuzzer.VIOLATIONS_MAX", 1),
    ):
        assert compare("flaw", 12_000, cached=True).violations


def test_answer_from_memory_of_another_kind_of_request_differs() -> None:
    really = FastCheckProtocol._answer_from

    def answer_from(self: Any, entry: Entry, data: bytes | None) -> None:
        if entry.response[1]:
            entry.response = self._in_flight.kind, entry.response[1]
        really(self, entry, data)

    with (
        patch.object(FastCheckProtocol, "_answer_from", answer_from),
        patch("tests.harness.fuzzer.VIOLATIONS_MAX", 1),
    ):
        assert compare("flaw", 12_000, cached=True).violations


def test_same_seed_makes_the_same_inputs() -> None:
    store = FixedStore()
    one, same, other = (
        NearCopies(seed, store.tokens, store.objects, KEY.encode()) for seed in ("1", "1", "2")
    )
    made = [one.make() for _ in range(100)]
    assert made == [same.make() for _ in range(100)]
    assert made != [other.make() for _ in range(100)]
