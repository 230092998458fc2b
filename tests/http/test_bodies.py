"""Bodies as they come over the wire: trailers, slow clients, chunks, early answers."""

import socket
import time
from contextlib import ExitStack

import pytest
from redis import Redis

from tests.harness.api import check_problem
from tests.harness.faults import hung
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service
from tests.harness.stores import service_variables
from tests.harness.wire import (
    CHUNKED,
    CREATION,
    HOST,
    LENGTH,
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


# Trailers


def test_trailer_is_no_header(service: Service, token: bytes) -> None:
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


@pytest.mark.slow
def test_request_that_takes_5_seconds_is_a_408(service: Service, token: bytes) -> None:
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
        "a body that no endpoint reads": (unauthorized + LENGTH + b"\r\n{", b"", [401]),
        "chunks that no endpoint reads": (unauthorized + CHUNKED + b"\r\n", b"1\r\n \r\n", [401]),
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


@pytest.mark.slow
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
        Service(**service_variables(redis_server.url)) as service,
        ExitStack() as stack,
    ):
        connections = [stack.enter_context(service.connect()) for _ in parts]
        for connection, (first, _, _) in zip(connections, parts, strict=True):
            connection.sendall(first)
        time.sleep(4.5)
        with hung(service):
            for connection, (_, rest, _) in zip(connections, parts, strict=True):
                connection.sendall(rest)
            time.sleep(1)
        for connection, (_, _, status) in zip(connections, parts, strict=True):
            assert [reply.status for reply in receive(connection)] == [status]


# Bodies


def test_body_behind_an_early_answer_is_drained(service: Service, token: bytes) -> None:
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


def test_body_of_a_get_is_not_the_next_request(service: Service, token: bytes) -> None:
    hidden = check(b"x" * 49)
    for line in b"GET /sesiones/self HTTP/1.1", b"HEAD /sesiones/self HTTP/1.1":
        get = check(token, b"Content-Length: %d\r\n" % len(hidden), line=line) + hidden
        last = check(token, b"Connection: close\r\n")
        received = talk(service, get + get + last)
        replies = parse(received, heads=(0, 1) if line.startswith(b"HEAD") else ())
        assert [reply.status for reply in replies] == [200, 200, 200]


def test_chunked_body_is_read(service: Service) -> None:
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


def test_chunks_over_the_limit_are_a_413(service: Service, token: bytes) -> None:
    for size in 1000, 100_000:
        coded = chunks(CREATION.ljust(16 * 1024 + 1), size)
        last = check(token, b"Connection: close\r\n")
        first, second = parse(talk(service, post(CHUNKED, body=coded), last))
        check_problem(first, 413)
        assert second.status == 200


@pytest.mark.parametrize(
    "body",
    [
        *(b"zz\r\n", b"-1\r\n", b"0x5\r\nhello\r\n", b"\r\n", b"5\nhello\r\n0\r\n\r\n"),
        *(b"5\r\nhelloXX", b"5\r\nhello\n0\r\n\r\n", b"5 \r\nhello\r\n", b"fffffffffffffffff\r\n"),
        *(b"5;\x00\r\nhello\r\n", b"0\r\nx\r\n\r\n", b"0\r\nx: \x00\r\n\r\n"),
    ],
)
def test_malformed_chunk_is_a_400(service: Service, token: bytes, body: bytes) -> None:
    for parts in [post(CHUNKED, body=body)], [post(CHUNKED), body]:
        check_refusal(talk(service, *parts), 400)
    first = check(token)
    for parts in [first + post(CHUNKED, body=body)], [first, post(CHUNKED), body]:
        assert statuses(talk(service, *parts)) == [200, 400]
    # Answered already: nothing is added, and the connection ends.
    unauthorized = b"POST /sesiones HTTP/1.1\r\n%b%b\r\n" % (HOST, CHUNKED)
    assert statuses(talk(service, unauthorized, body)) == [401]
