"""HTTP/1.1 as it comes over the wire: connections, pipelines, upgrades, forms of request."""

import re
import socket
import struct
import time

import pytest
from redis import Redis

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


def pause(redis: "Redis", milliseconds: int) -> None:
    """Hold Redis's answers back for a while, so that requests are in flight."""
    if milliseconds:
        redis.client_pause(milliseconds)


# Connections


def test_connection_is_kept(service: Service, token: bytes) -> None:
    with service.connect() as connection:
        for request in check(token), check(b"x"), post(LENGTH, body=CREATION), check(token):
            connection.sendall(request)
            (reply,) = receive(connection)
            assert "connection" not in reply.headers
        connection.sendall(check(token, b"Connection: close\r\n") + check(token))
        (reply,) = parse(read(connection))
        assert reply.headers["connection"] == "close"


def test_client_that_half_closes_gets_its_answer(service: Service, token: bytes) -> None:
    assert statuses(talk(service, check(token), half_close=True)) == [200]
    assert statuses(talk(service, check(b"x"), half_close=True)) == [401]
    assert statuses(talk(service, post(LENGTH, body=CREATION), half_close=True)) == [201]
    assert statuses(talk(service, check(token) * 3, half_close=True)) == [200] * 3
    assert statuses(talk(service, check(token) + b"\r\n", half_close=True)) == [200]


@pytest.mark.parametrize("behind", [b"GE", b"GET / HTTP/1.1\r\n", b"\x00", post(LENGTH, body=b"{")])
def test_client_that_half_closes_within_a_request_gets_the_answer_before(
    service: Service, redis: "Redis", token: bytes, behind: bytes
) -> None:
    # The first request is complete, whatever became of the one behind it.
    for hold in 0, 100:
        pause(redis, hold)
        received = talk(service, check(token) + behind, half_close=True)
        assert statuses(received)[:1] == [200]
        assert statuses(received)[1:] in ([], [400])


@pytest.mark.parametrize("rest", [b"GET /ses", check(b"x")[:-2], post(LENGTH), post(CHUNKED)])
def test_half_a_request_is_closed_or_a_400(service: Service, rest: bytes) -> None:
    # Nothing is lost by closing at once, nor by saying why.
    assert statuses(talk(service, rest, half_close=True)) in ([], [400])


@pytest.mark.parametrize("rest", [b"", b"\r\n\r\n"])
def test_no_request_has_no_answer(service: Service, rest: bytes) -> None:
    assert talk(service, rest, half_close=True) == b""


def test_bytes_behind_a_request_that_closes_are_ignored(service: Service, token: bytes) -> None:
    last = check(token, b"Connection: close\r\n")
    for behind in check(token), b"x" * 100_000, b"\r\n" * 50_000, b"\x00":
        assert statuses(talk(service, last + behind)) == [200]
    assert statuses(talk(service, check(token) + last + check(b"x"))) == [200, 200]


def test_refused_client_that_half_closes_gets_its_answer(service: Service) -> None:
    before = len(service.log)
    for data in b"\x00", post(CHUNKED, body=b"zz\r\n"), b"x" * 20_000:
        check_refusal(talk(service, data, half_close=True), 400)
    assert service.log[before:] == ""


@pytest.mark.parametrize("reset", [False, True])
def test_client_that_leaves_is_no_error(
    service: Service, redis: "Redis", token: bytes, reset: bool
) -> None:
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


def test_pipelined_requests_are_answered_in_order(
    service: Service, redis: "Redis", token: bytes
) -> None:
    self_ = check(token, line=b"GET /sesiones/self HTTP/1.1")
    round_ = [
        (check(token), 200),
        (self_, 200),
        (check(b"x"), 401),
        (post(LENGTH, body=CREATION), 201),
        (check(token, line=b"GET /nada HTTP/1.1"), 404),
        (post(CHUNKED, body=chunks(CREATION, 10)), 201),
        (check(token, line=b"GET /sesiones/logout HTTP/1.1"), 405),
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
def test_pipeline_that_ends_malformed_is_answered_up_to_there(
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


def test_request_split_at_any_byte_is_answered(service: Service, token: bytes) -> None:
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


def test_pipelined_upgrades_are_answered_as_http_1_1(service: Service, token: bytes) -> None:
    requests = check(token, UPGRADE) * 40
    assert statuses(talk(service, requests, half_close=True)) == [200] * 40


def test_upgrade_with_a_body_is_answered_as_http_1_1(
    service: Service, redis: "Redis", token: bytes
) -> None:
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


def test_upgrade_field_without_connection_is_ignored(service: Service, token: bytes) -> None:
    # Without "Connection: upgrade" the field means nothing (RFC 9110, 7.8).
    request = check(token, b"Upgrade: h2c\r\n")
    assert statuses(talk(service, request, check(token, b"Connection: close\r\n"))) == [200, 200]


def test_form_of_the_target_decides_its_path(service: Service, token: bytes) -> None:
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


def test_credential_is_found_by_the_name_of_its_field(service: Service, token: bytes) -> None:
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
    assert status(x_auth, bearer) == 401
    assert status(b"x-auth-token: \xff%b\r\n" % token) == 401
    assert status(b"x-auth-token: %b\xa0\r\n" % token) == 401
    assert status(b"x-auth-token: %b, %b\r\n" % (token, token)) == 401
    assert status(b"x-auth-token:\r\n", bearer) == 401


@pytest.mark.parametrize("space", [b" ", b"\t", b"  \t "])
def test_space_around_a_value_is_ignored(service: Service, token: bytes, space: bytes) -> None:
    # RFC 9110, 5.5: excluded before the value is looked at.
    for field in b"x-auth-token:%b%b%b", b"Authorization:%bBearer %b%b":
        request = b"GET /sesiones/self HTTP/1.1\r\n%bConnection: close\r\n%b\r\n\r\n"
        assert statuses(talk(service, request % (HOST, field % (space, token, space)))) == [200]
    key = b"Authorization:%bBearer %b%b\r\n" % (space, KEY.encode(), space)
    request = b"POST /sesiones HTTP/1.1\r\n%b%b%b%bConnection: close\r\n\r\n%b"
    assert statuses(talk(service, request % (HOST, key, JSON, LENGTH, CREATION))) == [201]
