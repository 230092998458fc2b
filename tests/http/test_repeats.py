"""Requests that had an answer from memory before: when the same bytes have it again."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from sesiones import tokens
from sesiones.http import repeats
from sesiones.http.fast_check import FastCheckProtocol
from sesiones.http.patterns import RequestPatterns
from sesiones.http.repeats import Repeats
from sesiones.http.templates import RequestTemplates
from sesiones.metrics import (
    CACHE_LOOKUPS,
    CHECKS,
    FAMILIES,
    HTTP_RESPONSES,
    SERVICE_FAMILIES,
    Metrics,
    cell,
)
from sesiones.redis_client import Lease
from sesiones.sesion import Sesion
from sesiones.store.near_cache import InvalidationTable, NearCache
from tests.harness.in_process import FixedStore, Wire, open_application
from tests.harness.stub_server import SESION, TOKEN, plain, until

REQUEST, RESPONSE = plain(b"/sesiones/self", TOKEN), b"the response"
DIGEST = tokens.digest(TOKEN.decode())
LASTING = SESION._replace(Fecha_Expiracion=2**40, Ultima_Actividad=1000)
LEASE_SECONDS, ENTRY_SECONDS = 5, 3


class Kept:
    """A request that is kept, its lease and what it is counted in. ``now``: the clock."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        patch.setattr(time, "monotonic", lambda: self.now)
        self.lease, self.table, self.metrics = Lease(), InvalidationTable(), Metrics()
        self.lease.extend(self.now + LEASE_SECONDS)
        self.cache = NearCache(ENTRY_SECONDS, 60, self.table, lambda _: self.lease, self.metrics)
        self.repeats = Repeats(self.cache, self.metrics)
        self.answer = self.repeats.answerer()
        self.keep(REQUEST)

    def keep(self, request: bytes) -> None:
        read = self.cache.begin([TOKEN.decode()], [DIGEST])
        self.cache.fill(read, [LASTING], [1800], 1000.0)
        entry = self.cache.get(TOKEN.decode())
        assert entry is not None
        self.repeats.keep(request, entry, RESPONSE)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    return Kept(monkeypatch)


def test_same_bytes_have_the_same_answer_until_their_entry_is_too_old(kept: Kept) -> None:
    kept.now += ENTRY_SECONDS - 0.001
    assert kept.answer(REQUEST) is RESPONSE
    kept.now += 0.001
    assert kept.answer(REQUEST) is None


def test_other_bytes_have_no_answer(kept: Kept) -> None:
    assert kept.answer(REQUEST[:-1]) is None
    assert kept.answer(REQUEST + REQUEST) is None


def _end_lease(kept: Kept) -> None:
    kept.lease.extend(kept.now)


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param(_end_lease, id="its lease has run out"),
        pytest.param(lambda kept: kept.lease.revoke(), id="its lease is revoked"),
        pytest.param(lambda kept: kept.cache.invalidate([DIGEST.encode()]), id="it has ended here"),
        pytest.param(
            lambda kept: kept.table.invalidate([DIGEST.encode()]), id="another worker was told"
        ),
        pytest.param(lambda kept: kept.cache.message(DIGEST.encode()), id="a message names it"),
    ],
)
def test_request_whose_entry_no_longer_counts_has_no_answer(
    kept: Kept, lose: Callable[[Kept], None]
) -> None:
    assert kept.answer(REQUEST) is RESPONSE
    lose(kept)
    assert kept.answer(REQUEST) is None
    assert kept.cache.get(TOKEN.decode()) is None


@pytest.mark.parametrize(
    "found",
    [None, LASTING._replace(Estado_Sesion=0), LASTING._replace(Fecha_Expiracion=2**41)],
    ids=["ended", "inactive", "changed"],
)
def test_request_has_no_answer_once_redis_has_said_otherwise(
    kept: Kept, found: Sesion | None
) -> None:
    read = kept.cache.begin([TOKEN.decode()], [DIGEST])  # for a check that asks for no-cache
    kept.cache.fill(read, [LASTING], [1800], 1000.0)
    assert kept.answer(REQUEST) is RESPONSE
    read = kept.cache.begin([TOKEN.decode()], [DIGEST])
    kept.cache.fill(read, [found], [1800], 1000.0)
    assert kept.answer(REQUEST) is None
    assert kept.cache.get(TOKEN.decode()) is None


def test_answer_counts_as_one_hit_one_valid_check_and_one_response(kept: Kept) -> None:
    before = kept.metrics.sums()
    kept.answer(REQUEST)
    kept.answer(REQUEST[:-1])
    after = kept.metrics.sums()
    counted = (CACHE_LOOKUPS, "hit"), (CHECKS, "valid"), (HTTP_RESPONSES, "200")
    for family in FAMILIES + SERVICE_FAMILIES:
        for value in family.values:
            index = cell(family, value)
            assert after[index] - before[index] == ((family, value) in counted)


HEAD = b"GET /sesiones/self HTTP/1.1\r\nHost: h\r\nX-Auth-Token: %b\r\nX-Request-Id: %d\r\n\r\n"


@pytest.mark.anyio
@pytest.mark.parametrize("step", [0, 1], ids=["the same bytes", "the same token and kind"])
async def test_last_answer_before_the_server_stops_says_so(
    nothing_learned: None, step: int
) -> None:
    redis = FixedStore()
    (token, _), *_ = redis.live.values()
    async with open_application(redis, cached=True) as application:
        wire = Wire(application)

        async def answer(number: int) -> bytes:
            wire.send(HEAD % (token, number * step))
            await until(lambda: not wire.owed)
            return wire.take()

        answers = [await answer(number) for number in range(5)]
        assert len(application.app_state["repeats"]) > 0
        wire.protocol.shutdown()
        last = await answer(5)
        assert wire.ended
        wire.lose()
    assert answers == [answers[0]] * 5
    assert last.replace(b"connection: close\r\n", b"") == answers[0] != last


@pytest.mark.anyio
async def test_answer_from_memory_is_found_by_no_bytes_but_whole_requests(
    nothing_learned: None,
) -> None:
    """Any other bytes by which one is found would be an answer to a malformed request."""
    redis = FixedStore()
    sent = [
        HEAD % (token, number)
        for number in (0, 0, 0, 1, 2, 3)
        for token, _ in [*redis.live.values()]
    ]
    async with open_application(redis, cached=True) as application:
        wire = Wire(application)
        for data in sent:
            wire.send(data)
            await until(lambda: not wire.owed)
            assert b" 200 " in wire.take()
        wire.lose()
        keys = [*application.app_state["repeats"]._kept]
    by_bytes = [key for key in keys if isinstance(key, bytes)]
    assert 0 < len(by_bytes) < len(keys)
    assert set(by_bytes) <= set(sent)


@pytest.mark.anyio
async def test_requests_that_come_again_are_found_by_their_bytes_on_a_connection_with_a_pattern(
    nothing_learned: None,
) -> None:
    redis = FixedStore()
    live = [token for token, _ in redis.live.values()]
    async with open_application(redis, cached=True) as application:
        wire = Wire(application)

        async def send(token: bytes, number: int) -> None:
            wire.send(HEAD % (token, number))
            await until(lambda: not wire.owed)
            assert b" 200 " in wire.take()

        for number in range(3):
            await send(live[0], number)
        assert wire.protocol._pattern is not None  # type: ignore[attr-defined]
        for token in live[1:] + live[1:]:
            await send(token, 5)
        assert wire.protocol._pattern is None  # type: ignore[attr-defined]
        assert HEAD % (live[-1], 5) in application.app_state["repeats"]._kept
        wire.lose()


@pytest.mark.anyio
async def test_answer_from_memory_is_found_by_whichever_pattern_a_request_matches(
    nothing_learned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sesiones.http.patterns.LEARN_SECONDS", 0.0)
    asked: list[bytes] = []
    ask = FastCheckProtocol._ask

    def counted(self: FastCheckProtocol, token: bytes, *arguments: Any) -> None:
        asked.append(token)
        ask(self, token, *arguments)

    monkeypatch.setattr(FastCheckProtocol, "_ask", counted)
    redis = FixedStore()
    (token, _), *_ = redis.live.values()
    async with open_application(redis, cached=True) as application:
        wire = Wire(application)
        for number in range(20):
            head = HEAD if number % 2 else HEAD.replace(b"Host", b"Accept: */*\r\nHost")
            wire.send(head % (token, number))
            await until(lambda: not wire.owed)
            assert b" 200 " in wire.take()
        wire.lose()
    assert len(asked) == 3  # both heads were parsed, and one entry answers the matches of both


@pytest.mark.anyio
async def test_nothing_is_learned_from_two_checks_that_are_answered_from_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learned: list[bytes] = []
    monkeypatch.setattr(RequestTemplates, "learn", lambda _, data, *__: learned.append(data))
    monkeypatch.setattr(RequestPatterns, "learn", lambda _, data, *__: learned.append(data))
    redis = FixedStore()
    (token, _), *_ = redis.live.values()
    check = HEAD % (token, 1)
    async with open_application(redis, cached=True) as application:
        wire = Wire(application)
        for data in check, check + check, b"\r\n\r\n" + check, check + b"\r\n", check + b"G":
            wire.send(data)
            await until(lambda: not wire.owed)
            assert wire.take().count(b" 200 ") == data.count(check)
        wire.lose()
    assert learned == [check, check]


def test_oldest_requests_make_room(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "ENTRIES_MAX", 3)
    requests = [REQUEST + bytes([each]) for each in range(3)]
    for request in requests:
        kept.keep(request)
    assert len(kept.repeats) == 3
    assert kept.answer(REQUEST) is None
    assert [kept.answer(request) for request in requests] == 3 * [RESPONSE]
