"""The fast check answers byte for byte what Starlette answers, and takes only plain requests."""

import asyncio
import itertools
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sesiones import tokens
from sesiones.http.fast_check import FastCheckProtocol
from sesiones.sesion import StoreUnavailable
from tests.harness.api import FORM, SERVICE
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service
from tests.harness.stores import EXAMPLES, service_variables
from tests.harness.stub_server import HOST, SESION, TOKEN, plain, stub_server, until

pytestmark = pytest.mark.anyio

Services = tuple[Service, Service, Service]


@pytest.fixture(scope="module")
def both(redis_server: RedisServer) -> Iterator[Services]:
    """The service with the fast check, without it, and with it and a near-cache, on the same
    sessions. No session slides between two checks of a test."""
    variables = service_variables(redis_server.url) | {"SESIONES_TOUCH_SECONDS": "60"}
    with (
        Service(**variables) as fast,
        Service("--http", "httptools", **variables) as reference,
        Service("--cache-seconds", "60", **variables) as cached,
    ):
        yield fast, reference, cached


@pytest.fixture(scope="module")
def sample(both: Services) -> dict[str, bytes]:
    """A token of every kind."""
    devices = "el móvil \u2028 \\", "b", "c"
    live, inactive, revoked = (both[0].new_session(Dispositivo=device) for device in devices)
    form = "&".join(f"{k}={v}" for k, v in (inactive | {"Estado_Sesion": 0}).items())
    assert both[0].request("PUT", "/sesiones", SERVICE | FORM, form).status == 200
    token = revoked["Token_Sesion"]
    ended = both[0].request(
        "DELETE", f"/sesiones/logout?Token_Sesion={token}", {"x-auth-token": token}
    )
    assert ended.status == 200
    return {
        "live": live["Token_Sesion"].encode(),
        "inactive": inactive["Token_Sesion"].encode(),
        "revoked": token.encode(),
        "unknown": tokens.make(7).encode(),
        "malformed": b"ses_short",
        "long": live["Token_Sesion"].encode() + b"A",
        "high bytes": b"ses_" + b"\xff" * 45,
        "empty": b"",
    }


def exchange(service: Service, data: bytes, pieces: int = 1) -> tuple[bytes, bool]:
    """What comes back for the bytes, sent in that many pieces, and whether all of it could be
    read: closing on unread bytes resets the connection."""
    received = b""
    with service.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        size = -(-len(data) // pieces)
        try:
            for start in range(0, len(data), size):
                connection.sendall(data[start : start + size])
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionResetError:
            return received, False
    return received, True


def compare(both: Services, data: bytes, *, pieces: int = 1) -> bytes:
    """What all answer to the bytes; it must be the same."""
    (fast, fast_whole), (reference, reference_whole), (cached, cached_whole) = (
        (re.sub(rb"date: [^\r]+", b"date: -", answer), is_whole)
        for answer, is_whole in (exchange(service, data, pieces) for service in both)
    )
    for answer, is_whole in (fast, fast_whole), (cached, cached_whole):
        if is_whole and reference_whole:
            assert answer == reference
        else:
            assert answer.startswith(reference) or reference.startswith(answer)
    return fast


TARGETS = [
    *(b"/sesiones/self", b"/sesiones/verificar", b"/sesiones/verificar/una/ruta?con=consulta&x"),
    *(b"/sesiones/verificar?x", b"/sesiones/verificar/../%2e%2e/%0A//"),
    *(b"/sesiones/verificar/#fragmento", b"/sesiones/verificars", b"/sesiones/self/"),
    *(b"/sesiones/self?x=1", b"/sesiones/self%0A", b"http://localhost/sesiones/self"),
]
CREDENTIALS: list[Callable[[bytes], bytes]] = [
    lambda token: b"X-Auth-Token: %b\r\n" % token,
    lambda token: b"authorization: bEARER %b\r\n" % token,
    lambda token: b"Authorization: Bearer  %b\r\n" % token,
    lambda token: b"Authorization: Bearer\r\n",
    lambda token: b"Authorization: Basic %b\r\nx-auth-token: %b\r\n" % (token, token),
    lambda token: b"x-auth-token: %b\r\nx-auth-token: %b\r\n" % (token, token),
    lambda token: b"x-auth-token: %b\r\nAuthorization: Bearer %b\r\n" % (token, token),
    lambda token: b"x-auth-token:\t %b \r\n" % token,
    lambda token: b"x_auth_token: %b\r\n" % token,
    lambda token: b"",
]


@pytest.mark.parametrize("credential", range(len(CREDENTIALS)))
def test_answer_to_every_token_target_and_credential_is_starlettes(
    both: Services, sample: dict[str, bytes], credential: int
) -> None:
    for target, token in itertools.product(TARGETS, sample.values()):
        data = b"GET %b HTTP/1.1\r\n%b%b\r\n" % (target, HOST, CREDENTIALS[credential](token))
        compare(both, data)


EXTRA = [
    *(b"", b"Connection: keep-alive\r\n", b"Connection: Keep-Alive\r\n", b"Connection: close\r\n"),
    *(b"Proxy-Connection: close\r\n", b"Connection: keep-alive, close\r\n"),
    b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
    *(b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"Content-Length: 0\r\n"),
    *(b"Content-Length: 00\r\n", b"Content-Length: 0\r\nContent-Length: 0\r\n"),
    *(b"Expect: 100-continue\r\n", b"Expect: x\r\n", b"Host: localhost\r\n"),
    b"Accept: */*\r\nUser-Agent: x\r\nX-Odd:\xe9\r\nCookie: a=b\r\n",
    b"".join(b"X-%d: 1\r\n" % i for i in range(97)),
    b"".join(b"X-%d: 1\r\n" % i for i in range(98)),
    *(b"".join(b"X-%d: 1\r\n" % i for i in range(99)), b"X-Long: " + b"a" * 16000 + b"\r\n"),
    b"X-Long: " + b"a" * 17000 + b"\r\n",
]


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"DELETE", b"PROPFIND", b"CONNECT"])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_answer_to_every_method_version_and_field_is_starlettes(
    both: Services, sample: dict[str, bytes], method: bytes, version: bytes
) -> None:
    for target, extra in itertools.product(TARGETS[:3], EXTRA):
        for host in (HOST, b""):
            head = b"%b %b HTTP/%b\r\n%b%b" % (method, target, version, host, extra)
            compare(both, head + b"X-Auth-Token: %b\r\n\r\n" % sample["live"])


BODIES = [
    b"Content-Length: 5\r\n\r\nhello",
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Content-Length: x\r\n\r\n",
]


@pytest.mark.parametrize("body", BODIES)
def test_answer_to_a_check_with_a_body_is_starlettes(
    both: Services, sample: dict[str, bytes], body: bytes
) -> None:
    for method, target in ((b"GET", TARGETS[0]), (b"POST", TARGETS[1])):
        head = b"%b %b HTTP/1.1\r\n%bX-Auth-Token: %b\r\n" % (method, target, HOST, sample["live"])
        compare(both, head + body)


def test_answers_in_a_pipeline_are_starlettes(both: Services, sample: dict[str, bytes]) -> None:
    live = sample["live"]
    requests = [
        plain(TARGETS[0], live),
        plain(TARGETS[1], sample["unknown"]),
        plain(TARGETS[2], live, b"POST"),
        plain(b"/", live),
        b"POST /sesiones/verificar HTTP/1.1\r\n%bX-Auth-Token: %b\r\nContent-Length: 3\r\n\r\nabc"
        % (HOST, live),
    ]
    for order in itertools.permutations(requests, 3):
        answer = compare(both, b"".join(order))
        assert answer.count(b"HTTP/1.1 ") == 3
    compare(both, b"".join(requests * 20))


def test_answers_to_requests_split_at_every_byte_are_starlettes(
    both: Services, sample: dict[str, bytes]
) -> None:
    data = plain(TARGETS[0], sample["live"]) + plain(TARGETS[1], sample["revoked"])
    for pieces in (2, 3, 7, len(data)):
        compare(both, data, pieces=pieces)
    for split in range(1, len(data)):
        with both[0].connect() as connection:
            connection.sendall(data[:split])
            connection.sendall(data[split:])
            connection.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        assert received.count(b"HTTP/1.1 200") == received.count(b"HTTP/1.1 401") == 1


fields = st.lists(
    st.sampled_from(
        [HOST.rstrip(), b"X-Auth-Token: LIVE", b"x-auth-token: DEAD", b"Authorization: Bearer LIVE"]
        + [line for extra in EXTRA[:14] for line in extra.split(b"\r\n") if line]
    ),
    max_size=6,
)


@settings(
    max_examples=10 * EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from([b"GET", b"HEAD", b"POST", b"OPTIONS"]),
            st.sampled_from(TARGETS),
            st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]),
            fields,
        ),
        min_size=1,
        max_size=4,
    ),
    pieces=st.integers(1, 5),
)
def test_answers_to_generated_requests_are_starlettes(
    both: Services,
    sample: dict[str, bytes],
    requests: list[tuple[bytes, bytes, bytes, list[bytes]]],
    pieces: int,
) -> None:
    data = b"".join(
        b"%b %b HTTP/%b\r\n%b\r\n"
        % (method, target, version, b"".join(b"%b\r\n" % line for line in lines))
        for method, target, version, lines in requests
    )
    data = data.replace(b"LIVE", sample["live"]).replace(b"DEAD", sample["unknown"])
    compare(both, data, pieces=pieces)


LEARNED: set[bytes] = set()
"""Requests of which the service has a template."""


@settings(
    max_examples=10 * EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    method=st.sampled_from([b"GET", b"HEAD"]),
    target=st.sampled_from(TARGETS[:3]),
    credential=st.sampled_from(CREDENTIALS[:2]),
    at=st.integers(0, 200),
    removed=st.sampled_from([0, 0, 1, 4, 49]),
    inserted=st.sampled_from([b"", b"LIVE", b"DEAD", b"ses_", b"A", b" ", b"\r\n", b"X: LIVE\r\n"]),
)
def test_answer_to_a_near_copy_of_a_template_is_starlettes(
    both: Services,
    sample: dict[str, bytes],
    method: bytes,
    target: bytes,
    credential: Callable[[bytes], bytes],
    at: int,
    removed: int,
    inserted: bytes,
) -> None:
    known = b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method, target, HOST, credential(sample["live"]))
    for _ in range(3 if known not in LEARNED else 0):
        assert compare(both, known).startswith(b"HTTP/1.1 200")
    LEARNED.add(known)
    inserted = inserted.replace(b"LIVE", sample["live"]).replace(b"DEAD", sample["unknown"])
    compare(both, known[:at] + inserted + known[at + removed :])


def test_token_moved_within_a_template_authenticates_only_as_a_credential(
    both: Services, sample: dict[str, bytes]
) -> None:
    token = sample["live"]
    known = plain(TARGETS[0], token)
    around = known.replace(token, b"")
    for _ in range(3):
        assert compare(both, known).startswith(b"HTTP/1.1 200")
    for at in range(len(around) + 1):
        answer = compare(both, around[:at] + token + around[at:])
        fits = around[:at].rstrip(b" ").endswith(b"Token:")
        assert answer.startswith(b"HTTP/1.1 200") == fits


def test_check_behind_the_end_of_a_body_makes_no_template(
    both: Services, sample: dict[str, bytes]
) -> None:
    check = plain(TARGETS[0], sample["live"])
    for _ in range(3):
        with both[0].connect() as connection:
            # Answered at the head: its body and a check then come in one piece.
            connection.sendall(b"POST /sesiones HTTP/1.1\r\n%bContent-Length: 3\r\n\r\n" % HOST)
            received = b""
            while b'"status":401' not in received:
                received += connection.recv(65536)
            connection.sendall(b"abc" + check)
            while b'"ID_Sesion":' not in received:
                received += connection.recv(65536)
    assert exchange(both[0], b"abc" + check)[0].startswith(b"HTTP/1.1 400")


async def test_plain_checks_are_fast_checks() -> None:
    async with stub_server() as served:
        for data in [
            plain(b"/sesiones/self", TOKEN),
            plain(b"/sesiones/self", TOKEN, b"HEAD"),
            plain(b"/sesiones/verificar/a?b", TOKEN, b"DELETE"),
            plain(b"/sesiones/self", TOKEN + b"\r\nConnection: keep-alive\r\nContent-Length: 0"),
            plain(b"/sesiones/self", b"").replace(
                b"X-Auth-Token: ", b"Authorization: Bearer " + TOKEN
            ),
        ]:
            for served.answer, status in (
                (SESION, b"200"),
                (None, b"401"),
                (StoreUnavailable("x"), b"503"),
            ):
                assert (await served.send(data)).startswith(b"HTTP/1.1 " + status), data
        assert set(served.asked) == {TOKEN.decode()}


async def test_requests_that_are_not_plain_go_to_starlette() -> None:
    self_ = plain(b"/sesiones/self", TOKEN)
    async with stub_server() as served:
        for data in [
            plain(b"/", TOKEN),
            plain(b"/sesiones/self", TOKEN, b"POST"),
            plain(b"/sesiones/self", TOKEN[:-1]),
            plain(b"/sesiones/self", TOKEN + b"\r\nX-Auth-Token: " + TOKEN),
            plain(b"/sesiones/self", TOKEN + b"\r\nAuthorization: Bearer " + TOKEN),
            plain(b"/sesiones/self", TOKEN + b"\r\nConnection: close"),
            plain(b"/sesiones/self", TOKEN + b"\r\nExpect: 100-continue"),
            plain(b"/sesiones/self", TOKEN + b"\r\nContent-Length: 1") + b"x",
            self_.replace(b"HTTP/1.1", b"HTTP/1.0"),
        ]:
            assert (await served.send(data)).startswith(b"HTTP/1.1 418"), data
        assert served.asked == []


async def test_no_check_is_fast_where_uvicorn_would_do_more_than_answer() -> None:
    async with stub_server(limit_concurrency=100) as served:
        assert b" 418 " in await served.send(plain(b"/sesiones/self", TOKEN))


async def test_pipelined_request_waits_for_the_check_before_it() -> None:
    async with stub_server() as served:
        served.hold = True
        sending = asyncio.create_task(
            served.send(plain(b"/sesiones/self", TOKEN) + plain(b"/other", TOKEN))
        )
        await until(lambda: bool(served.waiting))
        await asyncio.sleep(0.05)
        served.waiting.pop()(SESION)
        received = await sending
        assert received.index(b" 200 ") < received.index(b" 418 ")


async def test_answer_to_a_client_that_has_left_is_dropped() -> None:
    async with stub_server() as served:
        served.hold = True
        for _ in range(50):
            _, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(plain(b"/sesiones/self", TOKEN))
            await writer.drain()
            await until(lambda: bool(served.waiting))
            writer.transport.abort()
            await asyncio.sleep(0.005)
            served.waiting.pop()(SESION)
        served.hold, served.answer = False, SESION
        assert b" 200 " in await served.send(plain(b"/sesiones/self", TOKEN))
        assert not served.server.server_state.connections


async def test_shutdown_answers_the_check_in_flight_and_closes() -> None:
    async with stub_server() as served:
        served.hold = True
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(plain(b"/sesiones/self", TOKEN))
        await until(lambda: bool(served.waiting))
        served.server.should_exit = True
        await asyncio.sleep(0.3)
        served.waiting.pop()(SESION)
        received = await asyncio.wait_for(reader.read(), 5)
        assert b" 200 " in received
        assert b"connection: close\r\n" in received
        writer.close()


async def test_keep_alive_ends_an_idle_connection_and_no_other() -> None:
    async with stub_server(timeout_keep_alive=1) as served:
        served.answer = SESION
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        for _ in range(3):  # in use for longer than the time-out
            writer.write(plain(b"/sesiones/verificar", TOKEN))
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.6)
        assert await asyncio.wait_for(reader.read(), 3) == b""
        writer.close()


@pytest.mark.parametrize("target", [b"/sesiones/self", b"/other"])
async def test_client_that_does_not_read_is_cut(
    monkeypatch: pytest.MonkeyPatch, target: bytes
) -> None:
    monkeypatch.setattr("sesiones.http.flow.SEND_SECONDS", 0.2)
    async with stub_server() as served:
        served.answer = SESION
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", served.port))
            client.setblocking(False)
            await until(lambda: bool(served.server.server_state.connections))
            async with asyncio.timeout(20):
                while served.server.server_state.connections:
                    with suppress(BlockingIOError, ConnectionError):
                        client.send(plain(target, TOKEN) * 500)
                    await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_client_that_reads_while_the_event_loop_is_held_up_is_not_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sesiones.http.flow.SEND_SECONDS", 0.3)
    async with stub_server() as served:
        served.answer = SESION
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.setblocking(False)
            await until(lambda: bool(served.server.server_state.connections))
            (connection,) = served.server.server_state.connections
            unsent = plain(b"/sesiones/self", TOKEN) * 100_000
            async with asyncio.timeout(20):
                while not connection.flow.write_paused:
                    with suppress(BlockingIOError):
                        unsent = unsent[client.send(unsent[:65536]) :]
                    await asyncio.sleep(0)
            deadline = time.monotonic() + 0.6
            while time.monotonic() < deadline:
                with suppress(BlockingIOError):
                    client.recv(1 << 20)
            await asyncio.sleep(0.05)
            assert connection in served.server.server_state.connections


async def read_slowly(
    monkeypatch: pytest.MonkeyPatch, bytes_min: int, field: bytes = b""
) -> tuple[int, int]:
    """How long a body is, and how much of it comes to a client that reads 64 KiB in 20 ms."""
    monkeypatch.setattr("sesiones.http.flow.SEND_SECONDS", 0.3)
    monkeypatch.setattr("sesiones.http.protocol.SEND_SECONDS", 0.3)
    monkeypatch.setattr("sesiones.http.flow.SEND_BYTES_MIN", bytes_min)
    loop = asyncio.get_running_loop()
    async with stub_server(timeout_keep_alive=1) as served:
        served.body = bytes(8 << 20)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            client.connect(("127.0.0.1", served.port))
            client.sendall(b"GET /other HTTP/1.1\r\n%b%b\r\n" % (HOST, field))
            client.setblocking(False)
            received = bytearray()
            with suppress(ConnectionError):
                async with asyncio.timeout(20):
                    while chunk := await loop.sock_recv(client, 1 << 16):
                        received += chunk
                        await asyncio.sleep(0.02)
    return len(served.body), len(received.partition(b"\r\n\r\n")[2])


@pytest.mark.slow
@pytest.mark.parametrize("field", [b"", b"Connection: close\r\n"])
async def test_client_that_reads_slowly_gets_the_whole_answer(
    monkeypatch: pytest.MonkeyPatch, field: bytes
) -> None:
    length, received = await read_slowly(monkeypatch, 1 << 14, field)
    assert received == length


async def test_client_that_hardly_reads_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    length, received = await read_slowly(monkeypatch, 1 << 22)
    assert received < length


async def test_deadline_does_not_count_while_the_service_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sesiones.http.protocol.RECEIVE_SECONDS", 0.2)
    async with stub_server() as served:
        served.hold = True
        check = plain(b"/sesiones/self", TOKEN)
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(check * 2 + check[:20])
        await until(lambda: bool(served.waiting))
        await asyncio.sleep(0.7)  # nothing is read while an answer is owed
        writer.write(check[20:])
        served.waiting.pop()(SESION)
        received = await asyncio.wait_for(reader.readuntil(b" 418 "), 5)
        assert received.count(b" 200 ") == 1
        assert b" 408 " not in received
        writer.close()


async def test_upgrade_behind_a_check_keeps_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sesiones.http.protocol.RECEIVE_SECONDS", 0.8)
    async with stub_server() as served:
        served.answer = SESION
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(plain(b"/sesiones/verificar", TOKEN))
        await reader.readuntil(b"\r\n\r\n")
        begun = asyncio.get_running_loop().time()
        upgrade = b"POST /other HTTP/1.1\r\n%bConnection: Upgrade\r\nUpgrade: h2c\r\n" % HOST
        writer.write(upgrade + b"Content-Length: 50\r\n")
        await asyncio.sleep(0.6)
        writer.write(b"\r\n{")
        assert b" 4" in await asyncio.wait_for(reader.read(), 5)
        assert asyncio.get_running_loop().time() - begun < 1.2
        writer.close()


async def test_client_that_asks_and_does_not_read_is_held_back() -> None:
    async with stub_server() as served:
        served.answer = SESION
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        ask = plain(b"/sesiones/self", TOKEN) * 1000
        try:
            for _ in range(1000):  # 90 MB of questions; the kernel's buffers hold about 10
                writer.write(ask)
                await asyncio.wait_for(writer.drain(), 0.5)
            pytest.fail("the server reads on without end")
        except TimeoutError:
            pass
        finally:
            writer.transport.abort()


@pytest.mark.parametrize("request_line", [b"GET /sesiones/self", b"GET / ", b"POST / "])
async def test_pipeline_waits_as_bytes(
    monkeypatch: pytest.MonkeyPatch, request_line: bytes
) -> None:
    # Each one that is parsed and waits takes two kilobytes.
    queued = unread = 0
    receive = FastCheckProtocol.data_received

    def data_received(self: FastCheckProtocol, data: bytes) -> None:
        nonlocal queued, unread
        receive(self, data)
        queued, unread = max(queued, len(self.pipeline)), max(unread, len(self._unread))

    monkeypatch.setattr(FastCheckProtocol, "data_received", data_received)
    one = request_line.strip() + b" HTTP/1.1\r\nHost:\r\n\r\n"
    count = 700_000 // len(one)
    async with stub_server() as served:
        served.answer = SESION
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(one * count)
        writer.write_eof()
        received = await asyncio.wait_for(reader.read(), 50)
        writer.close()
    assert received.count(b"HTTP/1.1 418") == count
    assert queued == 1
    assert unread < 2 * 256 * 1024  # two reads of uvloop's


def test_request_behind_a_head_request_does_not_give_it_a_body(
    both: Services, sample: dict[str, bytes]
) -> None:
    for behind in (plain(TARGETS[0], sample["live"]), b"GET /sesiones/self HTTP/1.1\r\n\r\n"):
        answer = compare(both, plain(TARGETS[0], sample["live"], b"HEAD") + behind)
        assert b"\r\n\r\nHTTP/1.1" in answer
