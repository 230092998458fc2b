"""Request patterns: each invariant of sesiones/http/patterns.py, against the parser itself."""

import asyncio
import time
import timeit
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from uvicorn.server import ServerState

from sesiones import tokens
from sesiones.http import patterns
from sesiones.http.fast_check import Check, FastCheckProtocol
from sesiones.http.heads import HEAD_MAX_BYTES
from sesiones.http.patterns import RequestPatterns
from sesiones.http.protocol import IDLE
from sesiones.http.templates import Kind, RequestTemplates
from sesiones.http.traffic import Traffic
from sesiones.metrics import Metrics
from tests.harness.in_process import Transport
from tests.harness.stores import EXAMPLES
from tests.harness.stub_server import SESION, TOKEN, plain, stub_server

SELF, VERIFY = (False, False, False, True), (True, False, False, True)
CHECK = plain(b"/sesiones/self", TOKEN)
OTHER = b"ses_LG" + b"M" * 43
BROWSER = (
    b"GET /sesiones/verificar/cuenta?a=b HTTP/1.1\r\nHost: localhost:8000\r\nUser-Agent: x\r\n"
    b"X-Auth-Token: %b\r\nX-Request-Id: 1\r\nCookie: a=b\r\nConnection: keep-alive\r\n"
    b"Cache-Control: max-age=0\r\nX-Sin-Deslizar: 0\r\nContent-Length: 0\r\n\r\n" % TOKEN
)
ENORMOUS = CHECK.replace(b"Host:", b"X-%b: 1\r\nHost:" % (b"a" * 5000))
pytestmark = pytest.mark.anyio
LOOP = asyncio.new_event_loop()


@pytest.fixture(autouse=True)
def at_once(nothing_learned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "LEARN_SECONDS", 0.0)


@pytest.fixture(scope="module", autouse=True)
def close_loop() -> Iterator[None]:
    yield
    LOOP.close()


def parsed(data: bytes) -> tuple[bytes, Kind] | None:
    """What the parser and the fast check make of the data: the token and the kind of a plain check,
    if it is one and nothing else."""
    return taken_for_a_check(Parsing, data)


def behind(known: bytes, data: bytes) -> tuple[bytes, Kind] | None:
    """What a connection makes of the data whose last check matched the pattern of ``known``."""

    class Learning(WithoutApplication):
        patterns, templates = RequestPatterns(), RequestTemplates()

        def data_received(self, received: bytes) -> None:
            assert received is not data or self._pattern is not None
            super().data_received(received)

    # The three differ in more than the token, so they make no template.
    others = [known.replace(b"\r\nHost: ", b"\r\nHost: " + name, 1) for name in (b"a", b"b", b"")]
    return taken_for_a_check(Learning, *others, data)


def taken_for_a_check(
    protocol_class: type[FastCheckProtocol], *messages: bytes
) -> tuple[bytes, Kind] | None:
    """What a connection asks about because of the last of the messages, as parsed() says it."""
    asked: list[tuple[bytes, Kind]] = []

    def check(token: str, answer: Any) -> None:
        asked.append((token.encode(), protocol._in_flight.kind))
        if len(asked) < len(messages):
            answer(SESION)

    protocol, transport = connected(protocol_class, check)
    for message in messages:
        transport.written.clear()
        protocol.data_received(message)
    alone = protocol._in_flight is protocol.cycle and protocol._input is IDLE
    protocol.connection_lost(None)
    return asked[-1] if len(asked) == len(messages) and alone and not transport.written else None


def connected(
    protocol_class: type[FastCheckProtocol], check: Check
) -> tuple[FastCheckProtocol, Transport]:
    """A connection of a service whose store is that check."""
    # Made here, because it turns off a logger, and fixtures turn loggers on again.
    config = uvicorn.Config(Starlette(), ws="none", log_config=None, access_log=False)
    state = {"check": check, "traffic": Traffic(Metrics(), access_log=False)}
    protocol = protocol_class(config, ServerState(), state, LOOP)
    transport = Transport()
    protocol.connection_made(transport)  # type: ignore[arg-type]
    return protocol, transport


class WithoutApplication(FastCheckProtocol):
    def _start_asgi_task(self, *_: object) -> None:
        pass


class Parsing(WithoutApplication):
    """Without templates and patterns."""

    templates = None


def learned(data: bytes) -> RequestPatterns:
    """The pattern of a plain check."""
    found = RequestPatterns()
    request = parsed(data)
    assert request is not None
    found.learn(data, *request)
    return found


def matched(known: RequestPatterns, data: bytes) -> tuple[bytes, Kind] | None:
    """The token and the kind of the check that the data is, if it matches."""
    match = known.match(data)
    return None if match is None else match[1]


# 1. Made of one plain check


@pytest.mark.parametrize(
    "data",
    [
        CHECK.replace(b"\r\nHost", b"\r\n\r\nHost"),
        CHECK[:-2],
        CHECK + b"G",
        CHECK + CHECK,
        b"\r\n" + CHECK,
        CHECK.replace(b"Host: ", b"Host\x00: "),
        CHECK.replace(TOKEN, OTHER),  # it is said to be of TOKEN
    ],
)
def test_data_that_is_not_written_as_a_plain_check_makes_no_pattern(data: bytes) -> None:
    found = RequestPatterns()
    found.learn(data, TOKEN, SELF)
    assert len(found) == 0


async def test_only_what_the_parser_takes_for_one_plain_check_makes_a_pattern() -> None:
    known = FastCheckProtocol.patterns
    async with stub_server() as served:
        served.answer = SESION
        for data in (
            CHECK + b"G",
            CHECK + CHECK,
            CHECK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
            CHECK.replace(b"HTTP/1.1", b"HTTP/1.0"),
            CHECK.replace(b"GET", b"POST"),
            CHECK.replace(TOKEN, TOKEN[:-1]),
        ):
            await served.send(data)
        assert len(known) == 0
        await served.send(CHECK)
        assert len(known) == 1


# 2. and 3. What differs is a token, a host, a path or a value, and is what the parser accepts there


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (TOKEN, OTHER),
        (b"localhost:8000", b"api.example.com"),
        (b"localhost:8000", b"[::1]:80"),
        (b"/cuenta?a=b", b""),
        (b"/cuenta?a=b", b"?"),
        (b"/cuenta?a=b", b"/../%2e%2e//~\"'"),
        (b"User-Agent: x", b"User-Agent: Mozilla/5.0 (X11; Linux x86_64)"),
        (b"User-Agent: x", b"User-Agent:"),
        (b"User-Agent: x", b"User-Agent:\t \xff\xe9: ses_ \t"),
        (b"Cookie: a=b", b"Cookie: " + OTHER),
        (b"Cookie: a=b", b"Cookie: X-Auth-Token: " + OTHER),
        (b"Cookie: a=b", b"Cookie: " + b"c" * 12_000),
    ],
)
def test_head_with_other_values_matches(old: bytes, new: bytes) -> None:
    data = BROWSER.replace(old, new)
    assert data != BROWSER
    assert matched(learned(BROWSER), data) == parsed(data) != None  # noqa: E711
    assert behind(BROWSER, data) == parsed(data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (TOKEN, TOKEN[:-1]),
        (TOKEN, TOKEN + b"A"),
        (TOKEN, TOKEN + b" " + OTHER),
        (b"X-Auth-Token", b"x-auth-token"),
        (b"localhost:8000", b"a b"),
        (b"localhost:8000", b"localhost:8000, b"),
        (b"localhost:8000", b"a\xff"),
        (b"/cuenta?a=b", b"/#"),
        (b"/cuenta?a=b", b"s"),
        (b"/cuenta?a=b", b"/a b"),
        (b"GET", b"HEAD"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"User-Agent: x", b"User-Agent: x\x00"),
        (b"User-Agent: x", b"User-Agent: x\x7f"),
        (b"User-Agent: x", b"User-Agent: x\rX: y"),
        (b"User-Agent: x", b"User-Agent: x\nX: y"),
        (b"User-Agent: x", b"User-Agent: x\r\n y"),
        (b"User-Agent: x", b"User-Agent : x"),
        (b"User-Agent: x", b"Content-Length: 5"),
        (b"User-Agent: x", b"X-Auth-Token: " + OTHER),
        (b"User-Agent: x\r\n", b"User-Agent: x\r\nUser-Agent: y\r\n"),
        (b"User-Agent: x\r\n", b""),
        (b"Connection: keep-alive", b"Connection: close"),
        (b"Cache-Control: max-age=0", b"Cache-Control: no-cache"),
        (b"X-Sin-Deslizar: 0", b"X-Sin-Deslizar: 1"),
        (b"Content-Length: 0", b"Content-Length: 1"),
        (b"\r\n\r\n", b"\r\n\r\nG"),
    ],
)
def test_head_that_differs_in_more_does_not_match(old: bytes, new: bytes) -> None:
    data = BROWSER.replace(old, new)
    assert data != BROWSER
    assert learned(BROWSER).match(data) is None
    assert behind(BROWSER, data) == parsed(data)


FIELDS = [
    *(b"Accept: */*", b"accept-encoding: gzip, br", b"X-Forwarded-For: 10.1.2.3", b"X-Odd:\xe9"),
    *(b"Connection: keep-alive", b"Proxy-Connection: Keep-Alive", b"Content-Length: 0", b"X-1:"),
    *(b"Cache-Control: no-cache", b"Cache-Control: max-age=1", b"X-Sin-Deslizar: 1", b"TE: x"),
    *(b"Cookie: X-Auth-Token: " + OTHER, b"Keep-Alive: 5", b"Forwarded: for=a;host=b", b"Via: 1.1"),
]
CREDENTIALS = [
    b"X-Auth-Token: %b" % TOKEN,
    b"x-auth-token:%b" % TOKEN,
    b"Authorization: bEARER %b" % TOKEN,
]
TARGETS = [b"/sesiones/self", b"/sesiones/verificar", b"/sesiones/verificar/a?b=c"]


@st.composite
def plain_checks(draw: st.DrawFn) -> bytes:
    lines = [b"Host: localhost", draw(st.sampled_from(CREDENTIALS))]
    lines += draw(st.lists(st.sampled_from(FIELDS), max_size=6))
    target = draw(st.sampled_from(TARGETS))
    method = draw(
        st.sampled_from([b"GET", b"HEAD", b"POST"] if target[10:11] == b"v" else [b"GET"])
    )
    shuffled = draw(st.permutations(lines))
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (method, target, b"\r\n".join(shuffled))


PIECES = [
    b"",
    b"A",
    b" ",
    b"\t",
    b"\r",
    b"\n",
    b"\r\n",
    b"\x00",
    b"\x7f",
    b"\xff",
    b":",
    b"#",
    b"?",
]
PIECES += [
    OTHER,
    b"ses_",
    b"X: y\r\n",
    b"close",
    b"Content-Length: 5\r\n",
    b"chunked",
    b", no-cache",
]


@settings(max_examples=20 * EXAMPLES)
@given(
    known=plain_checks(),
    changes=st.lists(
        st.tuples(
            st.floats(0, 1),
            st.sampled_from([0, 0, 0, 1, 2, 4, 49]),
            st.sampled_from(PIECES) | st.binary(max_size=3),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_match_is_what_the_parser_finds(
    known: bytes, changes: list[tuple[float, int, bytes]]
) -> None:
    if parsed(known) is None:  # two fields exclude each other
        return
    data = known
    for where, removed, inserted in changes:
        at = int(where * len(data))
        data = data[:at] + inserted + data[at + removed :]
    found = matched(learned(known), data)
    assert found is None or found == parsed(data)
    assert behind(known, data) == parsed(data)


# 4. No longer than a head may be


def test_head_of_16_kib_matches_and_a_byte_more_does_not() -> None:
    found = learned(BROWSER)
    for size, matches in (HEAD_MAX_BYTES, True), (HEAD_MAX_BYTES + 1, False):
        value = b"c" * (size - len(BROWSER) + len(b"a=b"))
        data = BROWSER.replace(b"Cookie: a=b", b"Cookie: " + value)
        assert len(data) == size
        assert (found.match(data) is not None) is matches
        assert (behind(BROWSER, data) is not None) is matches


# How many there are, and when


def numbers_known(patch: pytest.MonkeyPatch, *requests: bytes) -> list[int]:
    """How many patterns there are after each request. They come after 0, 0.9 and 1 s."""
    patch.setattr(patterns, "LEARN_SECONDS", 1.0)
    clock = iter([1000.0, 1000.9, 1001.0])
    patch.setattr(time, "monotonic", lambda: next(clock))
    found, numbers = RequestPatterns(), []
    for request in requests:
        found.learn(request, TOKEN, SELF)
        numbers.append(len(found))
    return numbers


def test_second_pattern_is_made_a_second_later(monkeypatch: pytest.MonkeyPatch) -> None:
    assert numbers_known(monkeypatch, CHECK, BROWSER, BROWSER) == [1, 1, 2]


@pytest.mark.parametrize(
    "unfit", [ENORMOUS, CHECK.replace(b"\r\nHost", b"\r\n a\r\nHost")], ids=["enormous", "folded"]
)
def test_pattern_is_tried_no_sooner_after_a_head_that_makes_none(
    monkeypatch: pytest.MonkeyPatch, unfit: bytes
) -> None:
    assert numbers_known(monkeypatch, unfit, CHECK, CHECK) == [0, 0, 1]


def test_pattern_in_use_stays_whatever_heads_come() -> None:
    found = learned(CHECK)
    for fields in range(1, 80, 8):
        head = CHECK.replace(b"Host:", b"X: 1\r\n" * fields + b"Host:")
        for number in range(patterns.MAX_OF_A_LENGTH + 1):
            found.learn(head.replace(b"X:", b"X%d:" % number), TOKEN, SELF)
        assert matched(found, CHECK) == (TOKEN, SELF)
    assert len(found) == 1 + 10 * patterns.MAX_OF_A_LENGTH


def test_pattern_that_was_used_last_stays_among_those_of_its_length() -> None:
    used = CHECK.replace(b"Host:", b"X: 1\r\nHost:")
    found = learned(used)
    for number in range(50):
        other = CHECK.replace(b"Host:", b"X-%d: 1\r\nHost:" % number)
        found.learn(other, TOKEN, SELF)
        assert matched(found, used.replace(TOKEN, OTHER)) == (OTHER, SELF)
        assert matched(found, other) == (TOKEN, SELF)
    assert len(found) == patterns.MAX_OF_A_LENGTH


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"localhost:8000", b"a" * 15_000),
        (b"localhost:8000", b"a" * 7_500 + b":" + b"1" * 7_500),
        (b"localhost:8000", b"[" + b":" * 15_000 + b"]"),
        (b"/cuenta?a=b", b"/" + b"a" * 15_000),
        (b"a=b\r\n", b"a" * 15_000 + b"\r\n"),
    ],
    ids=["host", "host and port", "IPv6 address", "target", "value"],
)
def test_long_head_is_refused_in_the_time_in_which_it_matches(old: bytes, new: bytes) -> None:
    found = learned(BROWSER)
    matching = BROWSER.replace(old, new)
    other = matching.removesuffix(b"\r\n") + b"X: y\r\n"  # as many lines
    assert found.match(matching) is not None
    assert found.match(other) is None

    def seconds(data: bytes) -> float:
        return min(timeit.repeat(lambda: found.match(data), number=5, repeat=30))

    assert seconds(other) < 4 * seconds(matching)


def test_head_of_an_enormous_expression_makes_no_pattern() -> None:
    found = RequestPatterns()
    found.learn(ENORMOUS, TOKEN, SELF)
    assert len(found) == 0


def test_pattern_holds_no_token_and_no_value_of_a_client() -> None:
    request = BROWSER.replace(b"a=b\r\n", b"a=secret\r\n")
    (kept,) = learned(request)._of_length.values()
    expression = kept[0]._fullmatch.__self__.pattern  # type: ignore[attr-defined]
    assert TOKEN not in expression
    assert b"secret" not in expression


# A connection remembers the pattern that its last check matched


def numbered(number: int) -> tuple[str, bytes]:
    """A token, and a check of it with another request ID than those with other numbers."""
    token = tokens.make(number)
    data = BROWSER.replace(b"Request-Id: 1", b"Request-Id: %d" % number)
    return token, data.replace(TOKEN, token.encode())


async def test_request_that_matches_needs_no_parser(parsed_heads: list[bytes]) -> None:
    async with stub_server() as served:
        served.answer = SESION
        for number in range(5):
            token, data = numbered(number)
            assert b" 200 " in await served.send(data)
            assert served.asked[-1] == token
    assert len(parsed_heads) == 1


class Connection:
    """One connection, whose checks are all answered with a 200."""

    def __init__(self) -> None:
        self.protocol, _ = connected(FastCheckProtocol, self._check)
        self.asked: list[str] = []

    def _check(self, token: str, answer: Any) -> None:
        self.asked.append(token)
        answer(SESION)

    def send(self, number: int, header: bytes = b"User-Agent") -> None:
        token, data = numbered(number)
        self.protocol.data_received(data.replace(b"User-Agent", header))
        assert self.asked[-1] == token


def test_patterns_of_the_process_are_not_looked_through_for_the_next_check(
    parsed_heads: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, matched_heads = Connection(), []
    match = RequestPatterns.match

    def counted(self: RequestPatterns, data: bytes) -> Any:
        matched_heads.append(data)
        return match(self, data)

    monkeypatch.setattr(RequestPatterns, "match", counted)
    for number in range(10):
        connection.send(number)
    assert [len(parsed_heads), len(matched_heads)] == [1, 2]


def test_head_that_comes_again_is_recognized_by_a_template_and_not_by_a_pattern(
    parsed_heads: list[bytes],
) -> None:
    connection = Connection()
    for number, by_pattern in (1, False), (1, False), (1, False), (2, True), (2, True):
        connection.send(number)
        assert (connection.protocol._pattern is not None) is by_pattern
    assert connection.protocol.templates is not None
    assert len(connection.protocol.templates) == 1
    assert len(parsed_heads) == 1


def test_checks_of_several_kinds_by_turns_need_no_parser_and_no_template(
    parsed_heads: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection()
    for header in b"Via", b"Age":
        for number in range(2):
            connection.send(number, header)
    sought: list[bytes] = []
    monkeypatch.setattr(RequestTemplates, "match", lambda _, data: sought.append(data))
    for number in range(10):
        connection.send(number, (b"Via", b"Age")[number % 2])
    assert [len(parsed_heads), len(sought)] == [2, 0]


def test_connection_forgets_a_pattern_that_its_check_does_not_match(
    parsed_heads: list[bytes],
) -> None:
    connection = Connection()
    for number in range(3):
        connection.send(number)
    assert connection.protocol._pattern is not None
    connection.protocol.data_received(CHECK)
    assert connection.asked[-1] == TOKEN.decode()
    assert connection.protocol._pattern is None
    connection.send(4)
    assert connection.protocol._pattern is not None
    assert len(parsed_heads) == 2


def test_pattern_that_a_connection_uses_stays_among_those_of_its_length(
    parsed_heads: list[bytes],
) -> None:
    connection, known = Connection(), FastCheckProtocol.patterns
    for number in range(50):
        connection.send(number)
        known.learn(BROWSER.replace(b"Cookie", b"Cookie%d" % number), TOKEN, VERIFY)
    assert len(known) == patterns.MAX_OF_A_LENGTH
    assert known.match(BROWSER) is not None
    assert len(parsed_heads) == 1
