"""Request templates: each invariant of sesiones/http/templates.py, and that they can be off."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesiones import tokens
from sesiones.http import templates
from sesiones.http.fast_check import FastCheckProtocol
from sesiones.http.patterns import RequestPatterns
from sesiones.http.templates import MAX_BYTES, RequestTemplates
from tests.harness.stub_server import HOST, SESION, TOKEN, StubServer, plain, stub_server, until

pytestmark = pytest.mark.anyio

SELF = (False, False, False, True)
CHECK = plain(b"/sesiones/self", TOKEN)
POST = b"POST / HTTP/1.1\r\n%bContent-Length: 3\r\n\r\n" % HOST


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> RequestTemplates:
    """The templates of the process, of which there are none yet. There are no patterns."""
    known = RequestTemplates()
    monkeypatch.setattr(FastCheckProtocol, "templates", known)
    monkeypatch.setattr(RequestPatterns, "match", lambda *_: None)
    return known


def learned(*requests: bytes) -> RequestTemplates:
    """Templates that were told of the requests, each one a check of TOKEN."""
    found = RequestTemplates()
    for request in requests:
        found.learn(request, TOKEN, SELF)
    return found


# 1. Learned from the second of two requests in a row that the parser took for one plain check


def test_one_request_makes_no_template() -> None:
    assert len(learned(CHECK)) == 0
    assert len(learned(CHECK, plain(b"/sesiones/verificar", TOKEN), CHECK)) == 0


def test_two_requests_in_a_row_make_a_template() -> None:
    other = tokens.make(8).encode()
    found = learned(CHECK, CHECK)
    assert found.match(CHECK.replace(TOKEN, other)) == (other, SELF)


def test_learn_tells_whether_there_is_a_template() -> None:
    found, other = RequestTemplates(), plain(b"/sesiones/verificar", TOKEN)
    heads = (CHECK, False), (CHECK, True), (other, False), (CHECK, True), (other, True)
    for number, (head, is_known) in enumerate(heads):
        token = tokens.make(number).encode()
        assert found.learn(head.replace(TOKEN, token), token, SELF) is is_known


@pytest.mark.parametrize(
    "data",
    [
        CHECK + b"G",  # a part of another one behind it
        CHECK + POST + b"abc",
        CHECK + CHECK,
        CHECK + b"\x00",
        CHECK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        CHECK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        CHECK.replace(b"GET", b"POST"),
        plain(b"/sesiones/self?x", TOKEN),
        plain(b"/other", TOKEN),
        plain(b"/sesiones/self", TOKEN[:-1]),
        POST + b"abc",
    ],
)
async def test_anything_but_one_plain_check_makes_no_template(
    known: RequestTemplates, data: bytes
) -> None:
    async with stub_server() as served:
        served.answer = SESION
        for _ in range(3):
            await served.send(data)
    assert len(known) == 0


async def test_check_that_came_in_two_pieces_makes_no_template(known: RequestTemplates) -> None:
    async with stub_server() as served:
        served.answer = SESION
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(CHECK[:20])
            await asyncio.sleep(0.02)
            writer.write(CHECK[20:])
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            writer.close()
    assert len(known) == 0


# 2. Learned only where ses_ occurs once


@pytest.mark.parametrize("field", [b"ses_", b"x-ses_", TOKEN, b"ses_ses_"])
def test_request_with_a_second_ses_makes_no_template(field: bytes) -> None:
    for request in (
        CHECK.replace(b"Host:", b"Cookie: %b\r\nHost:" % field),
        CHECK.replace(b"\r\n\r\n", b"\r\nCookie: %b\r\n\r\n" % field),
    ):
        assert len(learned(request, request, request)) == 0


# 3. A match is the same bytes around a well-formed token


@pytest.mark.parametrize(
    "token",
    [
        b"",
        TOKEN[:-1],
        TOKEN + b"A",
        TOKEN[:-1] + b"!",
        TOKEN[:-1] + b"\xff",
        TOKEN[:-1] + b"\n",
        TOKEN.upper(),
        b" " + TOKEN,
        TOKEN + b" ",
        TOKEN[:20] + b"\r\nX:" + TOKEN[24:],
        TOKEN + TOKEN,
    ],
)
def test_other_bytes_than_a_token_do_not_match(token: bytes) -> None:
    assert learned(CHECK, CHECK).match(CHECK.replace(TOKEN, token)) is None


@given(
    at=st.integers(0, len(CHECK)),
    removed=st.integers(0, 60),
    inserted=st.binary(max_size=60) | st.sampled_from([b"ses_", TOKEN, b"\r\n", b"A"]),
)
def test_match_is_a_copy_with_another_token(at: int, removed: int, inserted: bytes) -> None:
    data = CHECK[:at] + inserted + CHECK[at + removed :]
    match = learned(CHECK, CHECK).match(data)
    if match is not None:
        token, kind = match
        assert tokens.is_well_formed(token.decode())
        assert (data, kind) == (CHECK.replace(TOKEN, token), SELF)


# 4. Compared only between two messages


async def begin_with_a_part(served: StubServer, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /other HTTP/1.1\r\nX: ")


async def begin_with_a_body(served: StubServer, writer: asyncio.StreamWriter) -> None:
    writer.write(POST.replace(b"3", b"%d" % (len(CHECK) + 1)))


async def begin_with_a_check_in_flight(served: StubServer, writer: asyncio.StreamWriter) -> None:
    served.hold = True
    writer.write(CHECK)
    await until(lambda: bool(served.waiting))


async def begin_with_an_error(served: StubServer, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00")


@pytest.mark.parametrize(
    "begin",
    [begin_with_a_part, begin_with_a_body, begin_with_a_check_in_flight, begin_with_an_error],
)
async def test_request_within_another_message_does_not_match(
    known: RequestTemplates,
    parsed_heads: list[bytes],
    begin: Callable[[StubServer, asyncio.StreamWriter], object],
) -> None:
    known.learn(CHECK, TOKEN, SELF)
    known.learn(CHECK, TOKEN, SELF)
    async with stub_server() as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        await begin(served, writer)  # type: ignore[misc]
        await asyncio.sleep(0.05)
        asked = len(served.asked)
        writer.write(CHECK)
        await until(lambda: CHECK in parsed_heads)
        assert len(served.asked) == asked
        writer.close()
        for done in served.waiting:
            done(None)


# 5. No token is kept, and neither much nor many


def test_template_holds_no_token() -> None:
    found = learned(CHECK, CHECK)
    assert TOKEN not in b"".join(part for around in found._kinds for part in around)
    assert TOKEN not in b"".join(found._candidate)


def test_long_request_makes_no_template() -> None:
    def padded(size: int) -> bytes:
        field = b"X: %b\r\nHost:" % (b"a" * (size - len(CHECK) - 5))
        return CHECK.replace(b"Host:", field)

    assert len(padded(MAX_BYTES)) == MAX_BYTES
    assert len(learned(*[padded(MAX_BYTES)] * 2)) == 1
    assert len(learned(*[padded(MAX_BYTES + 1)] * 3)) == 0


def test_number_of_templates_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_TEMPLATES", 5)
    found = RequestTemplates()
    for path in range(20):
        for _ in range(2):
            found.learn(plain(b"/sesiones/verificar/%d" % path, TOKEN), TOKEN, SELF)
        assert 1 <= len(found) <= 5


# On and off


async def test_request_that_matches_needs_no_parser(
    known: RequestTemplates, parsed_heads: list[bytes]
) -> None:
    async with stub_server() as served:
        served.answer = SESION
        for _ in range(5):
            other = tokens.make(8).encode()
            assert b" 200 " in await served.send(CHECK.replace(TOKEN, other))
            assert served.asked[-1] == other.decode()
        assert (len(parsed_heads), len(known)) == (2, 1)
        for unfit in (TOKEN[:-1] + b"!", TOKEN + b"A", TOKEN[:-1]):
            assert b" 418 " in await served.send(CHECK.replace(TOKEN, unfit))
        assert len(parsed_heads) == 5


async def test_without_templates_every_request_goes_to_the_parser(
    monkeypatch: pytest.MonkeyPatch, parsed_heads: list[bytes]
) -> None:
    monkeypatch.setattr(FastCheckProtocol, "templates", None)
    async with stub_server() as served:
        served.answer = SESION
        for _ in range(5):
            assert b" 200 " in await served.send(CHECK)
        assert (len(parsed_heads), len(served.asked)) == (5, 5)
