"""HTTP/1.1 as it comes over the wire: raw sockets against the service as a process."""

import re
import signal
import socket
import struct
import time
from contextlib import ExitStack

import pytest
from redis import Redis

from tests.harness.api import check_problem
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service
from tests.harness.stores import KEY
from tests.harness.wire import (
    CHUNKED,
    CREATION,
    HOST,
    JSON,
    LENGTH,
    UPGRADE,
    check,
    check_refusal,
    chunks,
    parse,
    post,
    read,
    receive,
    statuses,
    talk,
)

pytestmark = pytest.mark.usefixtures("no_error_logged")

HEAD_MAX_BYTES = 16 * 1024


def pause(redis: "Redis", milliseconds: int) -> None:
    """Redis answers nobody for a while, so that requests are in flight."""
    if milliseconds:
        redis.client_pause(milliseconds)


# Malformed


@pytest.mark.parametrize(
    "head",
    [
        b"\x00",
        b"\xff\xfe\xfd",
        b"hola\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"*1\r\n$4\r\nPING\r\n",  # Redis
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /sesiones/self HTTP/1.1\n" + HOST + b"\n",
        b"GET /sesiones/self HTTP/1.1\r\n" + HOST[:-2] + b"\n\n",
        b"GET /sesiones/self x HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET sesiones/self HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /sesiones/verificar/\xc3\xb1 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /sesiones/verificar/\x00 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self HTTP/3.7\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self HTTP/2.0\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self HTTP/2.0\r\n" + HOST + UPGRADE + b"\r\n",
        b"GET /sesiones/self HTTP/0.9\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self\r\n\r\n",
        b"POST /sesiones HTTP/1.0\r\n" + HOST + CHUNKED + b"\r\n0\r\n\r\n",
        b"GET /sesiones/self HTTP/1.1x\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self HTTP/1.10\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self HTTP/1.2\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self HTTP/01.1\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self HTTP/1.1 \r\n" + HOST + b"\r\n",
        b"GET /sesiones/self http/1.1\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self Http/1.1\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self rtsp/1.1\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self ICE/1.1\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self XHTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self HTTPS/1.1\r\n" + HOST + b"\r\n",
        b"DESCRIBE /sesiones/verificar HTTP/1.1\r\n" + HOST + b"\r\n",
        b"get /sesiones/self HTTP/1.1\r\n" + HOST + b"\r\n",
        b"INVENTO /sesiones/verificar HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /sesiones/self HTTP/1.1\r\n" + HOST + b"x : y\r\n\r\n",
        b"GET /sesiones/self HTTP/1.1\r\n" + HOST + b" x: y\r\n\r\n",
        b"GET /sesiones/self HTTP/1.1\r\n" + HOST + b"x: y\r\n z\r\n\r\n",
        b"GET /sesiones/self HTTP/1.1\r\n" + HOST + b": y\r\n\r\n",
        b"GET /sesiones/self HTTP/1.1\r\n" + HOST + b"xy\r\n\r\n",
        b"GET /sesiones/self HTTP/1.1\r\n" + HOST + b"x: a\x00b\r\n\r\n",
        b"GET /sesiones/self HTTP/1.1\r\n" + HOST + b"x: a\rb\r\n\r\n",
        b"GET /sesiones/self HTTP/1.1\r\n" + HOST + b"x: a\nb: c\r\n\r\n",
        b"GET /sesiones/self HTTP/1.1\r\n" + HOST + b"\xc3\xb1: a\r\n\r\n",
        b"CONNECT sesiones:443 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http://sesiones HTTP/1.1\r\n" + HOST + b"\r\n",
    ],
)
def test_malformed_requests(service: Service, head: bytes) -> None:
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
    for before, status in (check(token), 200), (post(LENGTH, body=CREATION), 201):
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


def test_another_protocol_that_is_like_a_known_check_is_a_400(
    service: Service, token: bytes
) -> None:
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
def test_the_name_of_another_protocol_elsewhere_is_no_error(
    service: Service, token: bytes, field: bytes
) -> None:
    line = b"GET /sesiones/verificar HTTP/1.1\r\n"
    request = check(token).replace(line, line + field)
    slashes = check(token, line=b"GET /sesiones/verificar/RTSP/1.1?ICE/1.0 HTTP/1.1")
    last = check(token, b"Connection: close\r\n", field)
    assert statuses(talk(service, request * 3 + slashes + last)) == [200] * 5
    for cut in range(len(line) - 12, len(line) + len(field) + 2):
        assert statuses(talk(service, request[:cut], request[cut:] + last, gap=0.005)) == [200] * 2
    device = b" RTSP/1.0 ICE/1.0 GET /sesiones/verificar RTSP/1.1"
    creation = CREATION.replace(b'"d"', b'"%b"' % device)
    length = b"Content-Length: %d\r\n" % len(creation)
    for body in creation, creation.replace(b", ", b",\n"):
        created = post(length, field, b"Connection: close\r\n", body=body)
        for cut in range(len(created) - len(body) - 3, len(created)):
            (reply,) = parse(talk(service, created[:cut], created[cut:], gap=0.005))
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
def test_a_coding_other_than_chunked_is_a_501(
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


@pytest.mark.parametrize("hosts", [b"", HOST * 2, HOST + b"host: otro\r\n"])
def test_exactly_one_host(service: Service, token: bytes, hosts: bytes) -> None:
    check_refusal(talk(service, check(token).replace(HOST, hosts)), 400)


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
def test_the_host_can_be_one(service: Service, token: bytes, host: bytes, status: int) -> None:
    # RFC 9112, 3.2, on the fast lane and beside it.
    for more in b"", b"Expect: x\r\n":
        request = check(token, more).replace(HOST, b"Host: %b\r\n" % host)
        assert statuses(talk(service, request, half_close=True)) == [status]


def test_a_refused_head_has_no_body(service: Service, token: bytes) -> None:
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


@pytest.mark.parametrize(
    "framing",
    [
        LENGTH + CHUNKED,
        CHUNKED + LENGTH,
        b"Content-Length: 0\r\n" + CHUNKED,
        LENGTH + b"Content-Length: 0\r\n",
        LENGTH + LENGTH,
        b"Content-Length: 37, 37\r\n",
        b"Content-Length: +37\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 0x25\r\n",
        b"Content-Length: 3 7\r\n",
        b"Content-Length: 3_7\r\n",
        b"Content-Length: \r\n",
        b"Content-Length: 18446744073709551653\r\n",  # 37 in 64 bits
        b"Content-Length : 37\r\n",
        LENGTH + b"Transfer-Encoding: identity\r\n",
        LENGTH + b"Transfer-Encoding: \x0bchunked\r\n",
        LENGTH + b"Transfer-Encoding : chunked\r\n",
        LENGTH + b"Transfer-Encoding\r\n : chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b'Transfer-Encoding: "chunked"\r\n',
        b"Transfer-Encoding: chunked;x=y\r\n",
        CHUNKED + CHUNKED,
        CHUNKED + b"Transfer-Encoding: identity\r\n",
    ],
)
def test_ambiguous_framing(service: Service, redis: "Redis", token: bytes, framing: bytes) -> None:
    # The body is one request by one reading, and chunks with another behind them by the other.
    smuggled = check(token, line=b"DELETE /sesiones/logout?Token_Sesion=%b HTTP/1.1" % token)
    for body in CREATION, b"0\r\n\r\n":
        check_refusal(talk(service, post(framing, body=body + smuggled)), 400)
    assert len(list(redis.scan_iter("*:h:*"))) == 1


# Large heads


def test_a_head_at_the_limit(service: Service, token: bytes) -> None:
    close = b"Connection: close\r\n"
    bare = len(check(token, close, b"x: \r\n"))
    full = check(token, close, b"x: " + b"a" * (HEAD_MAX_BYTES - bare) + b"\r\n")
    assert len(full) == HEAD_MAX_BYTES
    assert statuses(talk(service, full)) == [200]
    pieces = [full[at : at + 1000] for at in range(0, len(full), 1000)]
    assert statuses(talk(service, *pieces, gap=0.005)) == [200]
    # Not what came before it on the connection, nor what comes behind.
    behind = check(token)
    assert statuses(talk(service, behind * 200 + full)) == [200] * 201
    assert statuses(talk(service, post(LENGTH, close, body=CREATION))) == [201]


def test_a_hundred_fields(service: Service, token: bytes) -> None:
    for count in 1, 99, 100:
        fields = b"x: y\r\n" * (count - 3) + b"Connection: close\r\n"
        assert statuses(talk(service, check(token, fields))) == [200]
    for count in 101, 1000:
        check_refusal(talk(service, check(token, b"x: y\r\n" * (count - 2))), 431)


@pytest.mark.parametrize("size", [18_000, 60_000, 1_000_000])
@pytest.mark.parametrize("shape", ["one field", "many fields", "the target", "one name", "spaces"])
@pytest.mark.parametrize("cut", ["whole", "last byte apart", "in pieces", "never ends"])
def test_a_head_over_the_limit(
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
def test_a_head_over_the_limit_behind_something(
    service: Service, token: bytes, shape: bytes
) -> None:
    head = check(token, shape % (b"a" * 60_000))
    check_refusal(talk(service, b"\r\n\r\n" + head), 431)
    for cut in (len(head), len(head) - 1, len(head) - 30_000, 20_000):
        answers = talk(service, check(token) + head[:cut], head[cut:], half_close=True)
        assert statuses(answers) == [200, 431]


def test_a_blank_line_in_two_pieces(service: Service) -> None:
    """What looks like one in the body is none."""
    body = CREATION.ljust(16_000) + b"\r\n\r\n"
    length = b"Content-Length: %d\r\n" % len(body)
    request = post(length, b"Connection: close\r\n", body=body)
    end = request.index(b"\r\n\r\n")
    for cut in range(end, end + 5):
        assert statuses(talk(service, request[:cut], request[cut:])) == [201]


# Trailers


def test_a_trailer_is_no_header(service: Service, token: bytes) -> None:
    # RFC 9110, 6.5.1: a gateway that looks at the head must see what we see.
    trailers = b"x-auth-token: %b\r\nx: y\r\n" % token
    request = b"POST /sesiones/verificar HTTP/1.1\r\n%b%bConnection: close\r\n%b\r\n0\r\n%b\r\n"
    assert statuses(talk(service, request % (HOST, CHUNKED, b"", trailers))) == [401]
    x_auth = b"x-auth-token: %b\r\n" % token
    assert statuses(talk(service, request % (HOST, CHUNKED, x_auth, trailers))) == [200]


def test_trailers_are_limited(service: Service) -> None:
    trailers = b"".join(b"x%d: %b\r\n" % (n, b"a" * 1000) for n in range(1000))
    (reply,) = parse(talk(service, post(CHUNKED, body=b"0\r\n" + trailers)))
    assert reply.status in (400, 413, 431)
    assert reply.headers["connection"] == "close"


# Slow requests


def test_slow_requests(service: Service, token: bytes) -> None:
    """All at once, so that the 5 s are waited for once."""
    head = check(token)
    unauthorized = b"POST /sesiones HTTP/1.1\r\n" + HOST
    # What is sent at first, what drips in after it, and the answers.
    cases: dict[str, tuple[bytes, bytes, list[int]]] = {
        "a first byte": (b"G", b"", [408]),
        "a head": (head[:-2], b"", [408]),
        "a head that drips": (head[:-2], b"x: y\r\n", [408]),
        "a body": (post(LENGTH, body=CREATION[:-1]), b"", [408]),
        "a body that drips": (post(b"Content-Length: 100\r\n"), b" ", [408]),
        "a body that does not begin": (post(LENGTH), b"", [408]),
        "chunks that drip": (post(CHUNKED), b"1\r\n \r\n", [408]),
        "a chunk size that drips": (post(CHUNKED, body=b"00"), b"0", [408]),
        "a chunk extension that drips": (post(CHUNKED, body=b"0;"), b"a", [408]),
        "a body after 100 Continue": (post(LENGTH, b"Expect: 100-continue\r\n"), b"", [100, 408]),
        "a head behind an answer": (head + head[:-2], b"", [200, 408]),
        "a body behind an answer": (head + post(LENGTH, body=b"{"), b"", [200, 408]),
        # Already answered: there is nothing to add.
        "a body that nobody reads": (unauthorized + LENGTH + b"\r\n{", b"", [401]),
        "chunks that nobody reads": (unauthorized + CHUNKED + b"\r\n", b"1\r\n \r\n", [401]),
    }
    with ExitStack() as stack:
        connections: dict[str, socket.socket] = {}
        start = time.monotonic()
        for name, (first, _, _) in cases.items():
            connections[name] = stack.enter_context(service.connect())
            connections[name].sendall(first)
        silent = stack.enter_context(service.connect())  # idle, not slow
        while (elapsed := time.monotonic() - start) < 4.4:
            for name, connection in connections.items():
                connection.sendall(cases[name][1])
            asked = time.monotonic()
            assert service.request("GET", "/sesiones/self", {"x-auth-token": token.decode()})
            assert time.monotonic() - asked < 1
            time.sleep(min(0.5, max(0.01, 4.4 - elapsed)))
        for name, connection in connections.items():
            connection.settimeout(3)
            replies = parse(read(connection))
            assert [reply.status for reply in replies] == cases[name][2], name
            if replies[-1].status == 408:
                check_problem(replies[-1], 408)
                assert replies[-1].headers["connection"] == "close", name
            assert 4.4 < time.monotonic() - start < 8
        silent.sendall(check(token, b"Connection: close\r\n"))
        assert statuses(read(silent)) == [200]


def test_requests_that_arrive_while_the_service_is_paused_are_not_slow(
    redis_server: RedisServer, redis: "Redis"
) -> None:
    """The 5 s of their first bytes end within the pause, but their last bytes were sent in time."""
    parts = [
        (b"GET /sesiones/self HTTP/1.1\r\n" + HOST, b"\r\n", 401),
        (post(LENGTH, body=CREATION[:-1]), CREATION[-1:], 201),
        (post(CHUNKED, body=b"%x\r\n" % len(CREATION)), CREATION + b"\r\n0\r\n\r\n", 201),
    ]
    with (
        Service(
            SESIONES_REDIS_URL=redis_server.url,
            SESIONES_SERVICE_KEY=KEY,
            SESIONES_REDIS_TIMEOUT="5",
        ) as service,
        ExitStack() as stack,
    ):
        assert service.process is not None
        connections = [stack.enter_context(service.connect()) for _ in parts]
        for connection, (first, _, _) in zip(connections, parts, strict=True):
            connection.sendall(first)
        time.sleep(4.5)
        service.process.send_signal(signal.SIGSTOP)
        for connection, (_, rest, _) in zip(connections, parts, strict=True):
            connection.sendall(rest)
        time.sleep(1)
        service.process.send_signal(signal.SIGCONT)
        for connection, (_, _, status) in zip(connections, parts, strict=True):
            assert [reply.status for reply in receive(connection)] == [status]


# Bodies


def test_a_body_behind_an_early_answer(service: Service, token: bytes) -> None:
    # Drained, and the connection goes on.
    body = b"x" * 1_000_000
    length = b"Content-Length: %d\r\n" % len(body)
    unauthorized = b"POST /sesiones HTTP/1.1\r\n" + HOST
    for first, status in [
        (unauthorized + length + b"\r\n" + body, 401),
        (post(length, body=body), 413),
        (post(length, body=body, target=b"/nada"), 404),
        (check(token, length, line=b"POST /sesiones/verificar HTTP/1.1") + body, 200),
        (check(token, length) + body, 200),
        (unauthorized + CHUNKED + b"\r\nf4240\r\n" + body + b"\r\n0\r\n\r\n", 401),
    ]:
        last = check(token, b"Connection: close\r\n", line=b"GET /sesiones/self HTTP/1.1")
        assert statuses(talk(service, first, last)) == [status, 200]


def test_a_body_on_get_is_not_the_next_request(service: Service, token: bytes) -> None:
    hidden = check(b"x" * 49)
    for line in b"GET /sesiones/self HTTP/1.1", b"HEAD /sesiones/self HTTP/1.1":
        get = check(token, b"Content-Length: %d\r\n" % len(hidden), line=line) + hidden
        last = check(token, b"Connection: close\r\n")
        received = talk(service, get + get + last)
        replies = parse(received, heads=(0, 1) if line.startswith(b"HEAD") else ())
        assert [reply.status for reply in replies] == [200, 200, 200]


def test_chunked_bodies(service: Service) -> None:
    close = b"Connection: close\r\n"
    for coded in [
        chunks(CREATION, 1000),
        chunks(CREATION, 1),
        chunks(CREATION, 7, b";nombre=valor"),
        chunks(CREATION, 20).replace(b"14\r\n", b"00014\r\n"),
        chunks(CREATION.ljust(HEAD_MAX_BYTES), 1000),
    ]:
        assert statuses(talk(service, post(CHUNKED, close, body=coded))) == [201]
        (reply,) = parse(talk(service, post(CHUNKED, close), coded[:9], coded[9:]))
        assert (reply.status, reply.json()["ID_Usuario"]) == (201, 7)


def test_chunks_over_the_limit(service: Service, token: bytes) -> None:
    for size in 1000, 100_000:
        coded = chunks(CREATION.ljust(16 * 1024 + 1), size)
        last = check(token, b"Connection: close\r\n")
        first, second = parse(talk(service, post(CHUNKED, body=coded), last))
        check_problem(first, 413)
        assert second.status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"0x5\r\nhello\r\n",
        b"\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX",
        b"5\r\nhello\n0\r\n\r\n",
        b"5 \r\nhello\r\n",
        b"fffffffffffffffff\r\n",
        b"5;\x00\r\nhello\r\n",
        b"0\r\nx\r\n\r\n",
        b"0\r\nx: \x00\r\n\r\n",
    ],
)
def test_malformed_chunks(service: Service, token: bytes, body: bytes) -> None:
    for parts in [post(CHUNKED, body=body)], [post(CHUNKED), body]:
        check_refusal(talk(service, *parts), 400)
    first = check(token)
    for parts in [first + post(CHUNKED, body=body)], [first, post(CHUNKED), body]:
        assert statuses(talk(service, *parts)) == [200, 400]
    # Answered already: nothing is added, and the connection ends.
    unauthorized = b"POST /sesiones HTTP/1.1\r\n%b%b\r\n" % (HOST, CHUNKED)
    assert statuses(talk(service, unauthorized, body)) == [401]


# Connections


def test_a_connection_is_kept(service: Service, token: bytes) -> None:
    with service.connect() as connection:
        for request in check(token), check(b"x"), post(LENGTH, body=CREATION), check(token):
            connection.sendall(request)
            (reply,) = receive(connection)
            assert "connection" not in reply.headers
        connection.sendall(check(token, b"Connection: close\r\n") + check(token))
        (reply,) = parse(read(connection))
        assert reply.headers["connection"] == "close"


def test_a_half_closed_client_gets_its_answer(service: Service, token: bytes) -> None:
    assert statuses(talk(service, check(token), half_close=True)) == [200]
    assert statuses(talk(service, check(b"x"), half_close=True)) == [401]
    assert statuses(talk(service, post(LENGTH, body=CREATION), half_close=True)) == [201]
    assert statuses(talk(service, check(token) * 3, half_close=True)) == [200] * 3
    assert statuses(talk(service, check(token) + b"\r\n", half_close=True)) == [200]


@pytest.mark.parametrize("behind", [b"GE", b"GET / HTTP/1.1\r\n", b"\x00", post(LENGTH, body=b"{")])
def test_a_half_closed_client_gets_the_answer_before(
    service: Service, redis: "Redis", token: bytes, behind: bytes
) -> None:
    # The first request is complete, whatever became of the one behind it.
    for hold in 0, 100:
        pause(redis, hold)
        received = talk(service, check(token) + behind, half_close=True)
        assert statuses(received)[:1] == [200]
        assert statuses(received)[1:] in ([], [400])


@pytest.mark.parametrize("rest", [b"GET /ses", check(b"x")[:-2], post(LENGTH), post(CHUNKED)])
def test_half_a_request(service: Service, rest: bytes) -> None:
    # Nothing is lost by closing at once, nor by saying why.
    assert statuses(talk(service, rest, half_close=True)) in ([], [400])


@pytest.mark.parametrize("rest", [b"", b"\r\n\r\n"])
def test_no_request_has_no_answer(service: Service, rest: bytes) -> None:
    assert talk(service, rest, half_close=True) == b""


def test_a_refused_client_may_half_close(service: Service) -> None:
    before = len(service.log)
    for data in b"\x00", post(CHUNKED, body=b"zz\r\n"), b"x" * 20_000:
        check_refusal(talk(service, data, half_close=True), 400)
    assert service.log[before:] == ""


@pytest.mark.parametrize("reset", [False, True])
def test_disconnections(service: Service, redis: "Redis", token: bytes, reset: bool) -> None:
    unauthorized = b"POST /sesiones HTTP/1.1\r\n" + HOST
    partial = [
        b"",
        b"G",
        check(token)[:-2],
        post(LENGTH),
        post(LENGTH, body=CREATION[:-1]),
        post(CHUNKED, body=b"5\r\nhel"),
        post(LENGTH, b"Expect: 100-continue\r\n"),
        unauthorized + LENGTH + b"\r\n{",
    ]
    complete = [
        check(token),
        check(token) * 5,
        check(token, line=b"GET /sesiones/self HTTP/1.1"),
        post(LENGTH, body=CREATION),
        check(token) + post(LENGTH, body=CREATION) + check(token) + b"\x00",
        check(token, UPGRADE),
        post(LENGTH, body=CREATION) * 3,
    ]
    before = len(service.log)
    # Redis waits, so that the client is gone before there is an answer.
    pause(redis, 300)
    for request in partial + complete:
        connection = service.connect()
        connection.sendall(request)
        time.sleep(0.01)
        if reset:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.close()
    assert statuses(talk(service, check(token, b"Connection: close\r\n"))) == [200]
    for line in service.log[before:].splitlines():  # of the sessions made, and of Redis's pause
        assert re.search(r"(INFO sesiones\.store: created|WARNING sesiones\.store: slow:) ", line)


# Pipelines


def test_pipelined_requests_in_order(service: Service, redis: "Redis", token: bytes) -> None:
    self_ = check(token, line=b"GET /sesiones/self HTTP/1.1")
    round_ = [
        (check(token), 200),
        (self_, 200),
        (check(b"x"), 401),
        (post(LENGTH, body=CREATION), 201),
        (check(token, line=b"GET /nada HTTP/1.1"), 404),
        (post(CHUNKED, body=chunks(CREATION, 10)), 201),
        (check(token, line=b"GET /sesiones HTTP/1.1"), 405),
        (post(LENGTH.replace(b"37", b"2"), body=b"{}"), 422),
        (check(token, line=b"DELETE /sesiones/logout?Token_Sesion=x HTTP/1.1"), 200),
    ]
    requests = b"".join(request for request, _ in round_) * 4
    last = check(token, b"Connection: close\r\n")
    for hold in 0, 100:
        pause(redis, hold)
        for parts in [requests + last], [requests[:777], requests[777:1500], requests[1500:], last]:
            replies = parse(talk(service, *parts))
            assert [reply.status for reply in replies] == [
                *[status for _, status in round_] * 4,
                200,
            ]
            # Each answer is its own request's.
            for number, reply in enumerate(replies[:-1]):
                expects_object = round_[number % len(round_)][0] == self_
                assert (b'"Token_Sesion":"%b"' % token in reply.body) == expects_object


@pytest.mark.parametrize(
    "last",
    [
        b"\x00",
        b"GET /sesiones/self HTTP/1.1\r\n\r\n",
        check(b"x", HOST),
        check(b"x", b"x: y\r\n" * 100),
        check(b"x", b"x: " + b"a" * 20_000 + b"\r\n"),
    ],
)
@pytest.mark.parametrize("hold", [0, 100])
def test_a_pipeline_that_ends_malformed(
    service: Service, redis: "Redis", token: bytes, last: bytes, hold: int
) -> None:
    # What came before it is answered first; it may be told why, or see the connection close.
    self_ = check(token, line=b"GET /sesiones/self HTTP/1.1")
    for parts in [check(token) + self_ + last], [check(token) + self_, last]:
        pause(redis, hold)
        replies = parse(talk(service, *parts, gap=0.01))
        assert [reply.status for reply in replies[:2]] == [200, 200]
        assert token in replies[1].body
        assert [reply.status for reply in replies[2:]] in ([], [400], [431])
        assert replies[-1].headers["connection"] == "close"


def test_requests_split_at_every_byte(service: Service, token: bytes) -> None:
    requests = [
        (check(token), 200),
        (check(token, line=b"GET /sesiones/self HTTP/1.1"), 200),
        (post(LENGTH, body=CREATION), 201),
        (post(CHUNKED, body=chunks(CREATION, 30, b";a=b")), 201),
    ]
    for request, status in requests:
        with service.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(1, len(request)):
                connection.sendall(request[:at])
                time.sleep(0.0005)
                connection.sendall(request[at:])
                assert receive(connection)[0].status == status
            for byte in request:
                connection.sendall(bytes([byte]))
            assert receive(connection)[0].status == status


# Upgrade, Expect, and other forms of request


@pytest.mark.parametrize(
    "upgrade",
    [UPGRADE, b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n"],
)
def test_upgrades_are_answered_as_http_1_1(service: Service, token: bytes, upgrade: bytes) -> None:
    for line, body in [(b"GET /sesiones/self HTTP/1.1", token), (b"GET /nada HTTP/1.1", b"404")]:
        request = check(token, upgrade, line=line)
        with service.connect() as connection:
            connection.settimeout(4)
            connection.sendall(check(token) + request)
            first, second = receive(connection, 2)
            assert first.status == 200
            assert body in second.body
    # A client that goes on in the other protocol is told so, or cut off.
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert statuses(talk(service, check(token, upgrade) + preface)) in ([200], [200, 400])


def test_upgrades_behind_each_other(service: Service, token: bytes) -> None:
    requests = check(token, UPGRADE) * 40
    assert statuses(talk(service, requests, half_close=True)) == [200] * 40


def test_an_upgrade_with_a_body(service: Service, redis: "Redis", token: bytes) -> None:
    # Java's HttpClient asks for h2c with every request, bodies and all.
    for request in (
        post(UPGRADE, LENGTH, body=CREATION),
        post(UPGRADE, CHUNKED, body=chunks(CREATION, 10)),
    ):
        for cut in 0, len(request) - 20, request.index(b"Upgrade"):
            with service.connect() as connection:
                connection.settimeout(4)
                connection.sendall(request[:cut])
                time.sleep(0.03)
                connection.sendall(request[cut:])
                assert receive(connection)[0].status == 201
    body = b'{"Token_Sesion": "%b"}' % token
    length = b"Content-Length: %d\r\n" % len(body)
    request = check(token, UPGRADE, JSON, length, line=b"DELETE /sesiones/logout HTTP/1.1") + body
    with service.connect() as connection:
        connection.sendall(request)
        assert receive(connection)[0].json() == {"Sesiones_Eliminadas": 1}


def test_an_upgrade_field_that_asks_for_nothing(service: Service, token: bytes) -> None:
    # Without "Connection: upgrade" the field means nothing (RFC 9110, 7.8).
    request = check(token, b"Upgrade: h2c\r\n")
    assert statuses(talk(service, request, check(token, b"Connection: close\r\n"))) == [200, 200]


def test_expect_100_continue(service: Service, token: bytes) -> None:
    expect = b"Expect: 100-continue\r\n"
    close = b"Connection: close\r\n"
    assert statuses(talk(service, post(LENGTH, expect, close), CREATION)) == [100, 201]
    # An answer that needs no body is given at once, without asking for it.
    unauthorized = b"POST /sesiones HTTP/1.1\r\n" + HOST + LENGTH + expect + close + b"\r\n"
    assert statuses(talk(service, unauthorized)) == [401]
    large = post(b"Content-Length: 16385\r\n", expect, close)
    assert statuses(talk(service, large)) == [413]
    assert statuses(talk(service, check(token, LENGTH, expect, close))) == [200]


def test_no_100_continue_behind_a_refusal(service: Service) -> None:
    request = post(CHUNKED, b"Expect: 100-continue\r\n", body=b"zz\r\n")
    check_refusal(talk(service, request), 400)


def test_forms_of_target(service: Service, token: bytes) -> None:
    close = b"Connection: close\r\n"
    for line, status in [
        (b"GET http://sesiones/sesiones/self HTTP/1.1", 200),
        (b"GET http://otro:8000/sesiones/verificar?x HTTP/1.1", 200),
        (b"GET http://sesiones/nada HTTP/1.1", 404),
        (b"GET http://sesiones/ HTTP/1.1", 404),
        (b"OPTIONS * HTTP/1.1", 404),
        (b"GET /sesiones/self? HTTP/1.1", 200),
        (b"GET /sesiones/self?%FF=\x22 HTTP/1.1", 200),
        (b"GET /sesiones/self%0A HTTP/1.1", 404),
        (b"GET /sesiones/self%00 HTTP/1.1", 404),
        (b"GET /sesiones/self/ HTTP/1.1", 404),
        (b"GET //sesiones/self HTTP/1.1", 404),
        (b"GET /sesiones/verificar%0A HTTP/1.1", 404),
        (b"GET /sesiones/verificar/%0A HTTP/1.1", 200),
    ]:
        assert statuses(talk(service, check(token, close, line=line))) == [status], line


def test_odd_headers(service: Service, token: bytes) -> None:
    def status(*fields: bytes) -> int:
        request = b"GET /sesiones/self HTTP/1.1\r\n%b%bConnection: close\r\n\r\n"
        (reply,) = parse(talk(service, request % (HOST, b"".join(fields))))
        return reply.status

    x_auth, bearer = b"x-auth-token: %b\r\n" % token, b"Authorization: Bearer %b\r\n" % token
    assert status(b"X-AUTH-TOKEN:%b\r\n" % token) == 200
    assert status(b"X-Auth-Token: \t %b\r\n" % token) == 200
    assert status(b"AUTHORIZATION:bearer   %b\r\n" % token) == 200
    assert status(b"x: \xff\xfe\x80\r\n", x_auth) == 200
    assert status(b"x_auth_token: %b\r\n" % token) == 401
    assert status(x_auth, x_auth) == 401
    assert status(x_auth, bearer) == 401
    assert status(bearer, bearer) == 401
    assert status(b"Authorization: Basic x\r\n", x_auth) == 200
    assert status(b"x-auth-token: \xff%b\r\n" % token) == 401
    assert status(b"x-auth-token: %b\xa0\r\n" % token) == 401
    assert status(b"x-auth-token: %b, %b\r\n" % (token, token)) == 401
    assert status(b"x-auth-token:\r\n", bearer) == 401


@pytest.mark.parametrize("space", [b" ", b"\t", b"  \t "])
def test_space_around_a_value_is_not_the_values(
    service: Service, token: bytes, space: bytes
) -> None:
    # RFC 9110, 5.5: excluded before the value is looked at.
    for field in b"x-auth-token:%b%b%b", b"Authorization:%bBearer %b%b":
        request = b"GET /sesiones/self HTTP/1.1\r\n%bConnection: close\r\n%b\r\n\r\n"
        assert statuses(talk(service, request % (HOST, field % (space, token, space)))) == [200]
    key = b"Authorization:%bBearer %b%b\r\n" % (space, KEY.encode(), space)
    request = b"POST /sesiones HTTP/1.1\r\n%b%b%b%bConnection: close\r\n\r\n%b"
    assert statuses(talk(service, request % (HOST, key, JSON, LENGTH, CREATION))) == [201]
