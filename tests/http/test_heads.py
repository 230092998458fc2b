"""Heads as they come over the wire: malformed ones, other protocols, ambiguous framing, limits."""

import time

import pytest
from redis import Redis

from tests.harness.api import check_problem
from tests.harness.service import Service
from tests.harness.wire import (
    CHUNKED,
    CREATION,
    HOST,
    LENGTH,
    UPGRADE,
    check,
    check_refusal,
    chunks,
    parse,
    post,
    read,
    statuses,
    talk,
)

pytestmark = pytest.mark.usefixtures("no_error_logged")

HEAD_MAX_BYTES = 16 * 1024


# Malformed


BAD_VERSIONS = [
    *b"HTTP/3.7 HTTP/0.9 HTTP/1.1x HTTP/1.10 HTTP/1.2 HTTP/01.1 http/1.1 Http/1.1".split(),
    *b"rtsp/1.1 ICE/1.1 XHTTP/1.1 HTTPS/1.1".split(),
    b"HTTP/1.1 ",
]
BAD_LINES = [
    *(b"GET /sesiones/self x HTTP/1.1", b"GET sesiones/self HTTP/1.1"),
    b"GET http://sesiones HTTP/1.1",
    *(b"GET /sesiones/verificar/\xc3\xb1 HTTP/1.1", b"GET /sesiones/verificar/\x00 HTTP/1.1"),
    *(b"DESCRIBE /sesiones/verificar HTTP/1.1", b"INVENTO /sesiones/verificar HTTP/1.1"),
    *(b"GET /sesiones/self " + version for version in BAD_VERSIONS),
]
BAD_FIELDS = [b" x: y", b": y", b"xy", b"x: a\rb", b"x: a\nb: c", b"\xc3\xb1: a"]


@pytest.mark.parametrize(
    "head",
    [
        *(b"\x00", b"\xff\xfe\xfd", b"hola\r\n\r\n", b"GET\r\n\r\n", b"GET /sesiones/self\r\n\r\n"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"*1\r\n$4\r\nPING\r\n",  # Redis
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /sesiones/self HTTP/2.0\r\n" + HOST + UPGRADE + b"\r\n",
        b"GET /sesiones/self HTTP/1.1\n" + HOST + b"\n",
        b"GET /sesiones/self HTTP/1.1\r\n" + HOST[:-2] + b"\n\n",
        *(b"%b\r\n%b\r\n" % (line, HOST) for line in BAD_LINES),
        *(b"GET /sesiones/self HTTP/1.1\r\n%b%b\r\n\r\n" % (HOST, field) for field in BAD_FIELDS),
    ],
)
def test_malformed_request_is_a_400(service: Service, head: bytes) -> None:
    """Further ones are in test_conformance.py."""
    check_refusal(talk(service, head), 400)


OTHER_PROTOCOLS = [
    (b"GET", b"RTSP/1.1"),
    (b"GET", b"RTSP/1.0"),
    (b"GET", b" RTSP/1.1"),
    (b"POST", b"RTSP/1.1"),
    (b"OPTIONS", b"RTSP/2.0"),
    (b"DESCRIBE", b"RTSP/1.0"),
    (b"SETUP", b"RTSP/1.1"),
    (b"TEARDOWN", b"RTSP/1.1"),
    (b"GET_PARAMETER", b"RTSP/1.1"),
    (b"SOURCE", b"ICE/1.0"),
    (b"SOURCE", b"ICE/1.1"),
]
"""The parser accepts every one of them."""


@pytest.mark.parametrize(("method", "version"), OTHER_PROTOCOLS)
@pytest.mark.parametrize("target", [b"/sesiones/verificar", b"/sesiones/self", b"/nada", b"*"])
def test_another_protocol_is_a_400(
    service: Service, token: bytes, method: bytes, version: bytes, target: bytes
) -> None:
    request = check(token, line=b"%b %b %b" % (method, target, version))
    check_refusal(talk(service, request), 400)
    for before, status in (
        (check(token), 200),
        (post(LENGTH, body=CREATION), 201),
        (post(CHUNKED, body=chunks(CREATION, 7)), 201),
    ):
        for count in 1, 3:
            answers = statuses(talk(service, before * count + request))
            assert answers == [*[status] * count, 400]
    upgraded = check(token, UPGRADE, line=b"%b %b %b" % (method, target, version))
    check_refusal(talk(service, upgraded), 400)


@pytest.mark.parametrize(("method", "version"), OTHER_PROTOCOLS[:6:5] + OTHER_PROTOCOLS[-1:])
def test_another_protocol_in_pieces_is_a_400(
    service: Service, token: bytes, method: bytes, version: bytes
) -> None:
    request = check(token, line=b"%b /sesiones/verificar %b" % (method, version))
    line = request.index(b"\r\n") + 2
    for before, wanted in (b"", [400]), (post(LENGTH, body=CREATION), [201, 400]):
        for cut in range(line + 1):
            received = talk(service, before + request[:cut], request[cut:], gap=0.005)
            assert statuses(received) == wanted, cut
    byte_by_byte = [request[at : at + 1] for at in range(line)]
    check_refusal(talk(service, *byte_by_byte, gap=0.002), 400)


def test_another_protocol_that_is_like_a_template_is_a_400(service: Service, token: bytes) -> None:
    known = check(token)
    for _ in range(3):
        assert statuses(talk(service, known, half_close=True)) == [200]
    for version in b"RTSP/1.1", b"RTSP/1.0", b"HTTP/1.2", b"http/1.1", b"ICE/1.1":
        for _ in range(3):
            check_refusal(talk(service, known.replace(b"HTTP/1.1", version)), 400)


@pytest.mark.parametrize(
    "field",
    [
        b"User-Agent: RTSP/1.0\r\n",
        b"User-Agent: VLC RTSP/1.1 ICE/1.0\r\n",
        b"Referer: /sesiones/verificar RTSP/1.1\r\n",
        b"X: GET /sesiones/verificar RTSP/1.1\r\n",
        b"X: ICE/\r\nY: RTSP/\r\n",
    ],
)
def test_name_of_another_protocol_elsewhere_is_no_error(
    service: Service, token: bytes, field: bytes
) -> None:
    line = b"GET /sesiones/verificar HTTP/1.1\r\n"
    request = check(token).replace(line, line + field)
    slashes = check(token, line=b"GET /sesiones/verificar/RTSP/1.1?ICE/1.0 HTTP/1.1")
    last = check(token, b"Connection: close\r\n", field)
    assert statuses(talk(service, request * 3 + slashes + last)) == [200] * 5
    for cut in range(len(line) - 12, len(line) + len(field) + 2):
        assert statuses(talk(service, request[:cut], request[cut:] + last, gap=0.002)) == [200] * 2
    device = b" RTSP/1.0 ICE/1.0 GET /sesiones/verificar RTSP/1.1"
    creation = CREATION.replace(b'"d"', b'"%b"' % device)
    length = b"Content-Length: %d\r\n" % len(creation)
    for body in creation, creation.replace(b", ", b",\n"):
        created = post(length, field, b"Connection: close\r\n", body=body)
        for cut in range(len(created) - len(body) - 3, len(created)):
            (reply,) = parse(talk(service, created[:cut], created[cut:], gap=0.002))
            assert (reply.status, reply.json()["Dispositivo"]) == (201, device.decode())


@pytest.mark.parametrize(
    "coding",
    [
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: gzip,chunked\r\n",
        b"transfer-encoding: GZIP , Chunked\r\n",
        b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: deflate, gzip, chunked\r\n",
        b"Transfer-Encoding: identity, chunked\r\n",
        b"Transfer-Encoding: x;y=z, chunked\r\n",
    ],
)
def test_coding_other_than_chunked_is_a_501(
    service: Service, redis: "Redis", token: bytes, coding: bytes
) -> None:
    coded = b"0\r\n\r\n"
    for request in (
        post(coding, body=chunks(CREATION, 10)),
        post(coding, body=coded, target=b"/nada"),
        check(token, coding) + coded,
        check(token, coding, line=b"GET /sesiones/self HTTP/1.1") + coded,
        check(b"x", coding, line=b"PATCH /sesiones HTTP/1.1") + coded,
        check(token, coding, b"Expect: 100-continue\r\n"),
    ):
        check_refusal(talk(service, request), 501)
        check_refusal(talk(service, request[:-7], request[-7:]), 501)
    (first, second) = parse(talk(service, check(token) + post(coding, body=coded)))
    assert (first.status, second.status) == (200, 501)
    assert len(list(redis.scan_iter("*:h:*"))) == 1
    # What is malformed comes first.
    check_refusal(talk(service, check(token, coding, HOST) + coded), 400)
    check_refusal(talk(service, check(token, coding, b"x: y\r\n" * 100) + coded), 431)
    (head,) = parse(
        talk(service, check(token, coding, line=b"HEAD /sesiones/self HTTP/1.1")), heads=(0,)
    )
    assert (head.status, head.body) == (501, b"")


def test_chunked_among_empty_members_is_chunked(service: Service) -> None:
    # RFC 9110, 5.6.1: empty members of a list are ignored.
    for coding in b"Transfer-Encoding: ,chunked\r\n", b"Transfer-Encoding: , CHUNKED\r\n":
        request = post(coding, b"Connection: close\r\n", body=chunks(CREATION, 10))
        assert statuses(talk(service, request)) == [201]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"", 200),
        (b"sesiones_interno", 200),
        (b"127.0.0.1:8000", 200),
        (b"[::1]:8000", 200),
        (b"sesiones:", 200),
        (b"s%C3%A9", 200),
        (b"dos nombres", 400),
        (b"uno/dos", 400),
        (b"usuario@sesiones", 400),
        (b"sesiones:80:80", 400),
        (b"sesiones:ochenta", 400),
        (b"[::1", 400),
        (b"s\xc3\xa9", 400),
    ],
)
def test_host_that_is_no_host_is_a_400(
    service: Service, token: bytes, host: bytes, status: int
) -> None:
    # RFC 9112, 3.2, for a fast check and beside it.
    for more in b"", b"Expect: x\r\n":
        request = check(token, more).replace(HOST, b"Host: %b\r\n" % host)
        assert statuses(talk(service, request, half_close=True)) == [status]


def test_refusal_of_a_head_request_has_no_body(service: Service, token: bytes) -> None:
    for rest in [
        b" /sesiones/self HTTP/1.1\r\n\r\n",
        b" /sesiones/self HTTP/2.0\r\n" + HOST + b"\r\n",
        b" /sesiones/self HTTP/1.1\r\nx y\r\n",
        b" /sesiones/self\x00",
        b" sesiones/self",
        b" /" + b"a" * 40_000,
        b" /sesiones/self HTTP/1.1\r\n" + HOST + b"x: y\r\n" * 100 + b"\r\n",
    ]:
        for before in b"", check(token):
            answer = talk(service, before + b"HEAD" + rest, half_close=True)
            assert answer.endswith(b"\r\n\r\n"), rest
            (reply,) = parse(answer, heads=(0, 1))[-1:]
            assert reply.status in (400, 431)
            assert int(reply.headers["content-length"]) > 0
    # What cannot be told to be one has its body.
    head = check(token, line=b"HEAD /sesiones/verificar HTTP/1.1")
    for rest in b"\x00", b"H\x00", b"GET \x00":
        _, reply = parse(talk(service, head + rest), heads=(0,))
        check_problem(reply, 400)


BAD_LENGTHS = [b"37, 37", b"+37", b"-1", b"0x25", b"3 7", b"3_7", b"", b"%d" % (2**64 + 37)]
BAD_CODINGS = [
    *(b"identity", b"chunked, identity", b"chunked, chunked", b"xchunked", b"chunked;x=y"),
    b'"chunked"',
]


@pytest.mark.parametrize(
    "framing",
    [
        LENGTH + CHUNKED,
        CHUNKED + LENGTH,
        b"Content-Length: 0\r\n" + CHUNKED,
        LENGTH + b"Content-Length: 0\r\n",
        LENGTH + LENGTH,
        *(b"Content-Length: %b\r\n" % length for length in BAD_LENGTHS),
        b"Content-Length : 37\r\n",
        LENGTH + b"Transfer-Encoding: identity\r\n",
        LENGTH + b"Transfer-Encoding: \x0bchunked\r\n",
        LENGTH + b"Transfer-Encoding : chunked\r\n",
        LENGTH + b"Transfer-Encoding\r\n : chunked\r\n",
        *(b"Transfer-Encoding: %b\r\n" % coding for coding in BAD_CODINGS),
        CHUNKED + CHUNKED,
        CHUNKED + b"Transfer-Encoding: identity\r\n",
    ],
)
def test_ambiguous_framing_is_a_400(
    service: Service, redis: "Redis", token: bytes, framing: bytes
) -> None:
    # The body is one request by one reading, and chunks with another behind them by the other.
    smuggled = check(token, line=b"DELETE /sesiones/logout?Token_Sesion=%b HTTP/1.1" % token)
    for body in CREATION, b"0\r\n\r\n":
        check_refusal(talk(service, post(framing, body=body + smuggled)), 400)
    assert len(list(redis.scan_iter("*:h:*"))) == 1


# Large heads


def test_head_of_16_kib_is_answered_and_a_byte_more_is_a_431(
    service: Service, token: bytes
) -> None:
    close = b"Connection: close\r\n"
    bare = len(check(token, close, b"x: \r\n"))
    full = check(token, close, b"x: " + b"a" * (HEAD_MAX_BYTES - bare) + b"\r\n")
    assert len(full) == HEAD_MAX_BYTES
    assert statuses(talk(service, full)) == [200]
    assert statuses(talk(service, b"\r\n" + full)) == [200]
    over = full.replace(b"x: a", b"x: aa")
    check_refusal(talk(service, over), 431)
    check_refusal(talk(service, over[:9000], over[9000:]), 431)
    pieces = [full[at : at + 1000] for at in range(0, len(full), 1000)]
    assert statuses(talk(service, *pieces, gap=0.005)) == [200]
    # Not what came before it on the connection, nor what comes behind.
    behind = check(token)
    assert statuses(talk(service, behind * 200 + full)) == [200] * 201
    assert statuses(talk(service, post(LENGTH, body=CREATION) + full)) == [201, 200]
    assert statuses(talk(service, post(CHUNKED, body=chunks(CREATION, 7)) + full)) == [201, 200]
    assert statuses(talk(service, behind + over)) == [200, 431]
    assert statuses(talk(service, post(LENGTH, close, body=CREATION))) == [201]


def test_more_than_a_hundred_fields_are_a_431(service: Service, token: bytes) -> None:
    for count in 1, 99, 100:
        fields = b"x: y\r\n" * (count - 3) + b"Connection: close\r\n"
        assert statuses(talk(service, check(token, fields))) == [200]
    for count in 101, 1000:
        check_refusal(talk(service, check(token, b"x: y\r\n" * (count - 2))), 431)


@pytest.mark.parametrize("size", [18_000, 60_000, 1_000_000])
@pytest.mark.parametrize("shape", ["one field", "many fields", "the target", "one name", "spaces"])
@pytest.mark.parametrize("cut", ["whole", "last byte apart", "in pieces", "never ends"])
def test_head_over_the_limit_is_a_431(
    service: Service, token: bytes, size: int, shape: str, cut: str
) -> None:
    if shape == "the target":
        line = b"GET /sesiones/verificar/%b HTTP/1.1" % (b"a" * size)
        head = check(token, line=line)
    else:
        field = {
            "one field": b"x: " + b"a" * size,
            "many fields": b"\r\n".join([b"x: " + b"a" * 996] * (size // 1000 + 1)),
            "one name": b"a" * size + b": x",
            "spaces": b"x: " + b" " * size + b"a",
        }[shape]
        head = check(token, field + b"\r\n")
    parts = {
        "whole": [head],
        "last byte apart": [head[:-1], head[-1:]],
        "in pieces": [head[at : at + size // 4] for at in range(0, len(head), size // 4)],
        "never ends": [head[:-2], b"x: y\r\n"],
    }[cut]
    with service.connect() as connection:
        connection.settimeout(1.5)
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(0.01)
        except (ConnectionResetError, BrokenPipeError):
            pass  # refused before its end: the answer is there to be read
        check_refusal(read(connection), 431)


@pytest.mark.parametrize("shape", [b"x: %b\r\n", b"%b: x\r\n"])
def test_head_over_the_limit_behind_a_request_is_a_431(
    service: Service, token: bytes, shape: bytes
) -> None:
    head = check(token, shape % (b"a" * 60_000))
    check_refusal(talk(service, b"\r\n\r\n" + head), 431)
    for cut in (len(head), len(head) - 1, len(head) - 30_000, 20_000):
        answers = talk(service, check(token) + head[:cut], head[cut:], half_close=True)
        assert statuses(answers) == [200, 431]


def test_blank_line_in_two_pieces_ends_a_head(service: Service) -> None:
    """What looks like one in the body is none."""
    body = CREATION.ljust(16_000) + b"\r\n\r\n"
    length = b"Content-Length: %d\r\n" % len(body)
    request = post(length, b"Connection: close\r\n", body=body)
    end = request.index(b"\r\n\r\n")
    for cut in range(end, end + 5):
        assert statuses(talk(service, request[:cut], request[cut:])) == [201]
