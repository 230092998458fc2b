"""A server that is not Redis, or not quite: an outage like any other, in the other of the two HTTP
implementations than test_outage.py."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.harness.deployment import Deployment
from tests.harness.redis_server import RedisServer
from tests.harness.relay import Relay
from tests.harness.service import Reply, Service
from tests.store.outages import (
    TIMEOUT_SECONDS,
    assert_out,
    assert_recovers,
    assert_unavailable,
    in_time,
)


def black_hole(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def hang_up(connection: socket.socket) -> None:
    """A server that has too many clients, or is just starting, does so at once."""


def hang_up_in_a_reply(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"*1\r\n*8\r\n$4\r\n40")


def answer_without_end(connection: socket.socket) -> None:
    """Bytes come, and never a whole reply."""
    connection.recv(65536)
    connection.sendall(b"*1\r\n*1000000\r\n")
    while True:
        connection.sendall(b"$1\r\nx\r\n")
        time.sleep(0.02)


def reply(data: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(data)

    behave.__name__ = repr(data)
    return behave


def speak_first(connection: socket.socket) -> None:
    connection.sendall(b"-ERR max number of clients reached\r\n")
    black_hole(connection)


BEHAVIOURS = [
    black_hole,
    hang_up,
    hang_up_in_a_reply,
    answer_without_end,
    speak_first,
    reply(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    reply(b"\x00\xff" * 1000),
    reply(b"-LOADING Redis is loading the dataset in memory\r\n"),
    reply(b"-MASTERDOWN Link with MASTER is down\r\n"),
    reply(b"-BUSY Redis is busy running a script.\r\n"),
    reply(b"-CLUSTERDOWN The cluster is down\r\n"),
    reply(b"-NOPERM this user has no permissions\r\n"),
    reply(b"-NOSCRIPT No matching script.\r\n"),
    reply(b"-\r\n"),
    # Redis's protocol, but no answer to what was asked.
    reply(b"+OK\r\n"),
    reply(b":1\r\n"),
    reply(b"*0\r\n"),
    reply(b"$-1\r\n"),
    reply(b"*1\r\n:1\r\n"),
]


@pytest.fixture(scope="module")
def relay(server: RedisServer) -> Iterator[Relay]:
    with Relay(server.socket) as relay:
        yield relay


@pytest.fixture(scope="module")
def relayed_service(relay: Relay) -> Iterator[Service]:
    with Service(
        "--http",
        "httptools",  # without the fast check
        SESIONES_REDIS_URL=f"redis://127.0.0.1:{relay.port}",
        SESIONES_REDIS_TIMEOUT=str(TIMEOUT_SECONDS),
    ) as service:
        yield service


@pytest.fixture
def relayed(server: RedisServer, relay: Relay, relayed_service: Service) -> Iterator[Deployment]:
    yield Deployment(server, relayed_service)
    relay.become(relay.pass_on)


@pytest.mark.parametrize("behave", BEHAVIOURS)
def test_server_that_is_not_redis_is_an_outage(
    relayed: Deployment, relay: Relay, behave: Callable[[socket.socket], None]
) -> None:
    session = relayed.new_session()
    token = session["Token_Sesion"]
    relay.become(behave)
    asked: list[Callable[[], Reply]] = [
        lambda: relayed.check(token),
        relayed.create,
        lambda: relayed.put(session),
        lambda: relayed.end(token, token),
    ]
    for ask in asked:
        assert_unavailable(in_time(ask))
    relay.become(relay.pass_on)
    assert_recovers(relayed, session)


def test_full_backlog_is_an_outage(relayed: Deployment, relay: Relay) -> None:
    session = relayed.new_session()
    with relay.full_backlog():
        assert_out(relayed, session)
    assert_recovers(relayed, session)
