"""What a response says of its connection, and what then becomes of it."""

import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.harness.service import Service
from tests.harness.wire import (
    CHUNKED,
    CLOSE,
    CREATION,
    EXPECT,
    HOST,
    JSON,
    KEEP_ALIVE,
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

# A final response where "100 Continue" was expected


def unauthorized(*fields: bytes) -> bytes:
    return b"POST /sesiones HTTP/1.1\r\n" + HOST + JSON + b"".join(fields) + b"\r\n"


def of_type(*fields: bytes) -> bytes:
    return post(*fields).replace(JSON, b"Content-Type: text/plain\r\n")


WITHHELD: dict[str, tuple[Callable[[bytes, bytes], bytes], int]] = {
    "401 of POST": (lambda _, fields: unauthorized(fields), 401),
    "401 of DELETE": (
        lambda _, fields: check(b"x", fields, line=b"DELETE /sesiones/logout HTTP/1.1"),
        401,
    ),
    "404": (lambda _, fields: post(fields, target=b"/nada"), 404),
    "405": (lambda token, fields: check(token, fields, line=b"PATCH /sesiones HTTP/1.1"), 405),
    "415 of a type": (lambda _, fields: of_type(fields), 415),
    "415 of a coding": (lambda _, fields: post(fields, b"Content-Encoding: gzip\r\n"), 415),
    "200 of verificar": (lambda token, fields: check(token, fields), 200),
    "200 of verificar below": (
        lambda token, fields: check(token, fields, line=b"POST /sesiones/verificar/a?b HTTP/1.1"),
        200,
    ),
    "401 of verificar": (lambda _, fields: check(b"x", fields), 401),
    "200 of self": (
        lambda token, fields: check(token, fields, line=b"GET /sesiones/self HTTP/1.1"),
        200,
    ),
    "200 of /livez": (lambda token, fields: check(token, fields, line=b"GET /livez HTTP/1.1"), 200),
}


@pytest.mark.parametrize("framing", [LENGTH, CHUNKED])
@pytest.mark.parametrize("case", WITHHELD)
def test_response_to_a_withheld_body_closes(
    service: Service, token: bytes, case: str, framing: bytes
) -> None:
    make, status = WITHHELD[case]
    for expect in EXPECT, b"expect: 100-Continue\r\n", b"Expect: x, 100-continue\r\n":
        # Nothing behind it is taken for a request: it could be the body.
        for behind in b"", check(token), CREATION:
            for before, wanted in (b"", [status]), (check(token), [200, status]):
                with service.connect() as connection:
                    connection.sendall(before + make(token, framing + expect))
                    replies = receive(connection, len(wanted))
                    assert [reply.status for reply in replies] == wanted
                    assert replies[-1].headers["connection"] == "close"
                    connection.sendall(behind)
                    assert read(connection) == b""


def test_413_to_a_withheld_body_closes(service: Service) -> None:
    check_refusal(talk(service, post(b"Content-Length: 16385\r\n", EXPECT)), 413)


@pytest.mark.parametrize("case", WITHHELD)
def test_connection_is_kept_when_the_expected_body_was_received(
    service: Service, token: bytes, case: str
) -> None:
    make, status = WITHHELD[case]
    for framing, body in (LENGTH, CREATION), (CHUNKED, chunks(CREATION, 7)):
        with service.connect() as connection:
            connection.sendall(make(token, framing + EXPECT) + body)
            (reply,) = [one for one in receive(connection) if one.status != 100]
            assert reply.status == status
            assert "connection" not in reply.headers
            connection.sendall(check(token, CLOSE))
            assert statuses(read(connection)) == [200]


@pytest.mark.parametrize("framing", [b"", b"Content-Length: 0\r\n"])
def test_connection_is_kept_when_no_body_was_announced(
    service: Service, token: bytes, framing: bytes
) -> None:
    for make, status in WITHHELD.values():
        if framing or make(token, b"").startswith((b"GET", b"PATCH")):
            request = make(token, framing + EXPECT)
            received = talk(service, request, check(token, CLOSE))
            assert [one for one in statuses(received) if one != 100] == [status, 200]


def test_connection_is_kept_when_100_was_sent(service: Service, token: bytes) -> None:
    large = CREATION.ljust(16 * 1024 + 1)
    for request, body, status in [
        (post(LENGTH, EXPECT), CREATION, 201),
        (post(CHUNKED, EXPECT), chunks(CREATION, 9), 201),
        (post(b"Content-Length: 2\r\n", EXPECT), b"{]", 400),
        (post(b"Content-Length: 2\r\n", EXPECT), b"{}", 422),
        (post(CHUNKED, EXPECT), chunks(large, 1000), 413),
    ]:
        with service.connect() as connection:
            connection.settimeout(4)
            connection.sendall(request)
            assert [reply.status for reply in receive(connection)] == [100]
            connection.sendall(body)
            (reply,) = receive(connection)
            assert reply.status == status
            assert "connection" not in reply.headers
            connection.sendall(check(token, CLOSE))
            assert statuses(read(connection)) == [200]


def test_refusal_instead_of_100_closes(service: Service) -> None:
    for more, status in (HOST, 400), (b"x: y\r\n" * 100, 431):
        check_refusal(talk(service, post(LENGTH, EXPECT, more)), status)
    check_refusal(talk(service, post(CHUNKED, EXPECT, body=b"zz\r\n")), 400)


def test_http_1_0_does_not_know_100_continue(service: Service) -> None:
    request = post(LENGTH, EXPECT).replace(b"HTTP/1.1", b"HTTP/1.0")
    assert statuses(talk(service, request, CREATION)) == [201]
    refused = unauthorized(LENGTH, EXPECT, KEEP_ALIVE).replace(b"HTTP/1.1", b"HTTP/1.0")
    (reply, last) = parse(talk(service, refused, CREATION + check(b"x", CLOSE)))
    assert (reply.status, reply.headers["connection"], last.status) == (401, "keep-alive", 401)


@pytest.mark.parametrize("fields", [EXPECT, CLOSE, EXPECT + CLOSE])
def test_client_that_sends_its_body_all_the_same_reads_the_response(
    service: Service, token: bytes, fields: bytes
) -> None:
    # Bytes that the service does not read would reset the connection, and the response with it.
    body = b"x" * 1_000_000
    length = b"Content-Length: %d\r\n" % len(body)
    for request, status in [
        (unauthorized(length, fields), 401),
        (post(length, fields), 413),
        (check(token, length, fields), 200),
    ]:
        with service.connect() as connection:
            connection.settimeout(4)
            connection.sendall(request)
            time.sleep(0.05)
            try:
                for at in range(0, len(body), 50_000):
                    connection.sendall(body[at : at + 50_000])
                    time.sleep(0.001)
            except BrokenPipeError:
                pytest.fail("the connection was reset")
            assert statuses(read(connection)) == [status]


def test_client_that_never_ends_its_body_is_cut(service: Service) -> None:
    begun = time.monotonic()
    with service.connect() as connection, suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(unauthorized(b"Content-Length: 1000000\r\n", EXPECT))
        while time.monotonic() - begun < 3:
            connection.sendall(b"x")
            time.sleep(0.05)
    assert time.monotonic() - begun < 2


# HTTP/1.0


def old(token: bytes, *fields: bytes, path: bytes = b"/sesiones/self", host: bytes = HOST) -> bytes:
    return check(token, *fields, line=b"GET %b HTTP/1.0" % path).replace(HOST, host)


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        CLOSE,
        UPGRADE,
        b"Connection: keep-alive, close\r\n",
        b"Proxy-Connection: keep-alive\r\n",
    ],
)
@pytest.mark.parametrize("host", [b"", HOST])
def test_http_1_0_closes_where_it_is_not_asked_to_keep(
    service: Service, token: bytes, fields: bytes, host: bytes
) -> None:
    for path in b"/sesiones/self", b"/sesiones/verificar", b"/nada":
        (reply,) = parse(talk(service, old(token, fields, path=path, host=host) * 2))
        assert (reply.status, reply.headers["connection"]) == (
            404 if path == b"/nada" else 200,
            "close",
        )


@pytest.mark.parametrize(
    "fields", [KEEP_ALIVE, b"connection: Keep-Alive\r\n", b"Connection: x, keep-alive\r\n"]
)
@pytest.mark.parametrize("host", [b"", HOST])
def test_http_1_0_is_kept_where_it_asks_for_it(
    service: Service, token: bytes, fields: bytes, host: bytes
) -> None:
    paths = [b"/sesiones/self", b"/sesiones/verificar", b"/nada", b"/livez"]
    with service.connect() as connection:
        connection.settimeout(4)
        for path in paths * 2:
            connection.sendall(old(token, fields, path=path, host=host))
            (reply,) = receive(connection)
            assert reply.headers["connection"] == "keep-alive"
        connection.sendall(old(b"x", fields, host=host))
        (reply,) = receive(connection)
        assert (reply.status, reply.headers["connection"]) == (401, "keep-alive")
        connection.sendall(old(token, host=host) + check(token))
        (reply,) = parse(read(connection))
        assert (reply.status, reply.headers["connection"]) == (200, "close")


def test_http_1_0_is_kept_in_a_pipeline_and_with_a_body(service: Service, token: bytes) -> None:
    creation = post(LENGTH, KEEP_ALIVE, body=CREATION).replace(b"HTTP/1.1", b"HTTP/1.0")
    kept = old(token, KEEP_ALIVE)
    replies = parse(talk(service, kept + creation + kept + check(token) + old(token)))
    assert [reply.status for reply in replies] == [200, 201, 200, 200, 200]
    assert [reply.headers.get("connection") for reply in replies] == [
        "keep-alive",
        "keep-alive",
        "keep-alive",
        None,
        "close",
    ]


def test_http_1_1_says_nothing_of_a_connection_that_it_keeps(
    service: Service, token: bytes
) -> None:
    for path in b"/sesiones/self", b"/nada":
        line = b"GET %b HTTP/1.1" % path
        first, _ = parse(talk(service, check(token, KEEP_ALIVE, line=line), check(token, CLOSE)))
        assert "connection" not in first.headers


def test_stopping_service_ends_a_connection_of_http_1_0(token: bytes, service: Service) -> None:
    with Service(**service.variables) as stopping, stopping.connect() as connection:
        connection.sendall(old(token, KEEP_ALIVE))
        assert receive(connection)[0].headers["connection"] == "keep-alive"
        stopping.process.terminate()
        time.sleep(0.2)
        connection.sendall(old(token, KEEP_ALIVE))
        (reply,) = parse(read(connection))
        assert (reply.status, reply.headers["connection"]) == (200, "close")
