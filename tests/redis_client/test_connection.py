"""The connection to Redis on a real server: no reply ever reaches another caller, whoever leaves,
and every form of URL finds its way, through Sentinel too."""

import asyncio
import contextlib
import gc
import random
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from sesiones import tokens
from sesiones.redis_client import Commands, connect, single
from sesiones.redis_client.connection import SilentError
from sesiones.redis_client.single import Affects
from sesiones.sesion import StoreUnavailable
from sesiones.tasks import SingleFlight
from tests.harness.redis_server import RedisSentinels, RedisServer, free_port
from tests.harness.stores import available, open_store

pytestmark = pytest.mark.anyio

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def commands(redis_server: RedisServer, redis: "Redis") -> AsyncIterator[Commands]:
    commands = connect(redis_server.url, 5)
    yield commands
    await commands.aclose()


@contextlib.asynccontextmanager
async def fake_redis(
    handle: Handler, timeout_seconds: float = 0.2, userinfo: str = ""
) -> AsyncIterator[Commands]:
    """Commands on a server that does what the test says."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The other side may reset the connection at any time.
        with contextlib.suppress(OSError):
            await handle(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    commands = connect(f"redis://{userinfo}127.0.0.1:{port}", timeout_seconds)
    async with server:
        try:
            yield commands
        finally:
            await commands.aclose()
            await asyncio.sleep(0.02)  # until the handlers have seen it


@pytest.fixture(autouse=True)
async def unheard() -> AsyncIterator[list[dict[str, Any]]]:
    """Nothing is left for the event loop to complain of: each would be lines in a log."""
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    yield unheard
    gc.collect()
    await asyncio.sleep(0)
    assert not unheard


# One connection, many callers.


async def test_callers_that_leave_never_cost_another_its_reply(commands: Commands) -> None:
    """5000 callers, a third of which are cancelled at any moment between asking and being
    answered: every other one reads what it asked for."""
    choose = random.Random(7)
    big = "x" * 100_000

    async def ask(number: int) -> None:
        if number % 50:
            assert await commands.execute("ECHO", number) == b"%d" % number
        else:
            assert await commands.execute("ECHO", f"{number}{big}") == f"{number}{big}".encode()

    async def leave(task: "asyncio.Task[None]") -> None:
        await asyncio.sleep(choose.random() * 0.01)
        task.cancel()

    stayed: list[asyncio.Task[None]] = []
    left = []
    for round_ in range(50):
        tasks = [asyncio.create_task(ask(round_ * 100 + i)) for i in range(100)]
        leaving = [task for task in tasks if choose.random() < 1 / 3]
        left += [asyncio.create_task(leave(task)) for task in leaving]
        stayed += [task for task in tasks if task not in leaving]
        await asyncio.sleep(0)
    await asyncio.gather(*stayed, *left)
    assert len(stayed) > 3000
    assert await commands.execute("CLIENT", "LIST", "TYPE", "normal") is not None


async def test_commands_arrive_in_the_order_of_their_callers(
    commands: Commands, redis: "Redis"
) -> None:
    before = redis.info("clients")["connected_clients"]
    await asyncio.gather(*(commands.execute("RPUSH", "list", i) for i in range(3000)))
    assert redis.lrange("list", 0, -1) == [b"%d" % i for i in range(3000)]
    assert redis.info("clients")["connected_clients"] == before + 1


async def test_errors_are_their_own_callers(commands: Commands) -> None:
    replies = await asyncio.gather(
        *(commands.execute(*(("ECHO", i) if i % 3 else ("NOSUCH",))) for i in range(300)),
        return_exceptions=True,
    )
    for i, reply in enumerate(replies):
        if i % 3:
            assert reply == b"%d" % i
        else:
            assert isinstance(reply, ResponseError)


async def test_big_replies_come_in_pieces(commands: Commands, redis: "Redis") -> None:
    value = random.Random(1).randbytes(8_000_000)
    redis.set("value", value)
    redis.rpush("list", *range(50_000))
    got, listed, echoed = await asyncio.gather(
        commands.execute("GET", "value"),
        commands.execute("LRANGE", "list", 0, -1),
        commands.execute("ECHO", "ñ"),
    )
    assert got == value
    assert listed == [b"%d" % i for i in range(50_000)]
    assert echoed == "ñ".encode()


async def test_a_reply_may_come_byte_by_byte() -> None:
    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        for byte in b"*3\r\n$4\r\na\r\nb\r\n:-7\r\n*1\r\n$-1\r\n+OK\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(0.002)

    async with fake_redis(dribble, timeout_seconds=5) as commands:
        replies = await asyncio.gather(commands.execute("A"), commands.execute("B"))
        assert list(replies) == [[b"a\r\nb", -7, [None]], b"OK"]


# A reply that is late.


async def test_a_late_reply_drops_the_connection_with_all_that_wait() -> None:
    connections = 0

    async def first_is_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await reader.read(1000)
            await asyncio.sleep(0.7)
            if not writer.transport.is_closing():
                writer.write(b"+LATE\r\n")
        while data := await reader.read(1000):
            writer.write(b"+PONG\r\n" * data.count(b"PING"))

    async with fake_redis(first_is_late, timeout_seconds=0.5) as commands:
        begun = time.monotonic()
        first = asyncio.create_task(commands.execute("PING"))
        await asyncio.sleep(0.2)
        second = asyncio.create_task(commands.execute("PING"))
        for task in first, second:
            with pytest.raises(RedisConnectionError):
                await task
            # The second did not wait for its own 0.5 s: its reply comes after the first's.
            assert time.monotonic() - begun < 0.65
        assert await commands.execute("PING") == b"PONG"
        await asyncio.sleep(0.3)  # the first connection's reply is no caller's
        assert await asyncio.gather(*(commands.execute("PING") for _ in range(9))) == [b"PONG"] * 9
        assert connections == 2


@contextlib.asynccontextmanager
async def first_connection_is_silent(
    timeout_seconds: float,
) -> AsyncIterator[tuple[Commands, list[bytes]]]:
    """Commands on a server whose first connection answers one PING, and then nothing: as if it had
    been lost without a sign. What is sent on that one is in the list."""
    received: list[bytes] = []
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await reader.read(1000)
            writer.write(b"+PONG\r\n")
            while data := await reader.read(1000):
                received.append(data)
        while data := await reader.read(1000):
            writer.write(b"+PONG\r\n" * data.count(b"PING"))

    async with fake_redis(handle, timeout_seconds) as commands:
        assert await commands.execute("PING") == b"PONG"
        yield commands, received


async def test_silence_leaves_half_of_the_time_for_a_second_try() -> None:
    async with first_connection_is_silent(1.0) as (commands, received):
        begun = time.monotonic()
        kept = asyncio.create_task(commands.execute("PING"))
        with pytest.raises(SilentError):
            await commands.execute("PING", repeatable=True)
        assert time.monotonic() - begun < 0.8
        # New commands go to another connection, and what may not be repeated keeps its time.
        assert await commands.execute("PING", repeatable=True) == b"PONG"
        assert not kept.done()
        with pytest.raises(RedisConnectionError, match="no reply in time"):
            await kept
        assert time.monotonic() - begun > 0.9
        assert b"".join(received).count(b"PING") == 2


async def test_an_idle_connection_that_is_silent_is_noticed_without_traffic() -> None:
    async with first_connection_is_silent(0.2) as (commands, received):
        told: list[Affects] = []
        commands.on_owner_change(told.append)
        await asyncio.to_thread(wait_until, lambda: bool(told), 5)
        assert b"TIME" in b"".join(received)


async def test_answered_at_is_when_the_answered_command_was_sent() -> None:
    """Not when its reply was read: a paused process may read it long after."""
    async with first_connection_is_silent(0.5) as (commands, _):
        answered_at = commands.answered_at("eQ")
        await asyncio.sleep(0.1)
        assert commands.answered_at("eQ") == answered_at
        silent = asyncio.create_task(commands.execute("PING"))
        await asyncio.sleep(0.3)
        # The connection that took over answers later, but the first one's owner may be another.
        assert await commands.execute("PING") == b"PONG"
        assert commands.answered_at("eQ") == answered_at
        with pytest.raises(RedisConnectionError):
            await silent
        await asyncio.sleep(0.02)
        assert commands.answered_at("eQ") > answered_at


async def test_a_loss_is_told_of_what_has_answered_alone() -> None:
    """Else whatever accepts and hangs up would have all endings looked through each time."""
    answers = False

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        if answers:
            writer.write(b"+PONG\r\n")

    async with fake_redis(hang_up) as commands:
        told: list[Affects] = []
        commands.on_owner_change(told.append)
        for _ in range(3):
            with pytest.raises(RedisConnectionError):
                await commands.execute("PING")
        assert told == []
        answers = True
        assert await commands.execute("PING") == b"PONG"
        await asyncio.to_thread(wait_until, lambda: bool(told))
        assert [affects("eQ") for affects in told] == [True]


async def test_a_late_reply_drops_the_connection_though_its_caller_left() -> None:
    connections = 0

    async def first_is_deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        deaf = connections == 1
        while await reader.read(1000):
            if not deaf:
                writer.write(b"+PONG\r\n")

    async with fake_redis(first_is_deaf) as commands:
        gone = asyncio.create_task(commands.execute("PING"))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0.25)
        assert await commands.execute("PING") == b"PONG"
        assert connections == 2


async def test_replies_that_nobody_asked_for_drop_the_connection() -> None:
    async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            writer.write(b"+ONE\r\n+TWO\r\n")

    async with fake_redis(chatter) as commands:
        for _ in range(3):  # each on a new connection: "TWO" is never the next one's reply
            assert await commands.execute("PING") == b"ONE"
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("greeting", [b"", b"-ERR max number of clients reached\r\n"])
async def test_a_server_that_hangs_up_at_once_is_a_redis_error(greeting: bytes) -> None:
    """As one does that has too many clients."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)

    async with fake_redis(hang_up) as commands:
        for _ in range(20):
            with pytest.raises(RedisError):
                await commands.execute("PING")


# Opening, leaving, closing.


@contextlib.asynccontextmanager
async def opening_slowly() -> AsyncIterator[tuple[Commands, list[int]]]:
    """Commands on a server that takes 0.1 s for the AUTH of the handshake, and a list that grows
    by one a connection."""
    connections: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await reader.read(1000)
        await asyncio.sleep(0.1)
        writer.write(b"+OK\r\n")
        while data := await reader.read(1000):
            writer.write(b"+PONG\r\n" * data.count(b"PING"))

    async with fake_redis(handle, timeout_seconds=1, userinfo=":secret@") as commands:
        yield commands, connections


async def test_a_caller_that_leaves_does_not_end_the_opening() -> None:
    async with opening_slowly() as (commands, connections):
        tasks = [asyncio.create_task(commands.execute("PING")) for _ in range(50)]
        await asyncio.sleep(0.05)
        for task in tasks[:25]:  # the first of them began to open
            task.cancel()
        assert await asyncio.gather(*tasks[25:]) == [b"PONG"] * 25
        assert connections == [1]


async def test_an_opening_that_nobody_waits_for_serves_the_next() -> None:
    async with opening_slowly() as (commands, connections):
        task = asyncio.create_task(commands.execute("PING"))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.1)
        assert await commands.execute("PING") == b"PONG"
        assert connections == [1]


async def test_a_failed_opening_that_nobody_waited_for_is_forgotten() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts, and never answers the AUTH
        commands = connect(f"redis://:secret@127.0.0.1:{deaf.getsockname()[1]}", 0.1)
        task = asyncio.create_task(commands.execute("PING"))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.2)
        begun = time.monotonic()
        with pytest.raises(RedisError):
            await commands.execute("PING")
        assert time.monotonic() - begun < 1
        await commands.aclose()


async def test_work_that_is_asked_for_as_it_ends_is_done_again() -> None:
    """Its last look at what there is to do has been."""
    runs: list[int] = []

    async def work() -> None:
        runs.append(1)
        if len(runs) == 1:
            # Comes after its end, and before anyone is told of that.
            asyncio.get_running_loop().call_soon(flight.start)

    flight = SingleFlight(work)
    flight.start()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (len(runs), flight.running) == (2, False)
    await flight.aclose()


async def test_closing_while_it_opens() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def never(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        begun.set()
        while await reader.read(1000):
            pass
        ended.set()

    async with asyncio.timeout(5), fake_redis(never, 2, ":secret@") as commands:
        task = asyncio.create_task(commands.execute("PING"))
        await begun.wait()
        await asyncio.sleep(0.02)  # until it waits for the handshake's reply
        await commands.aclose()
        with pytest.raises((RedisError, asyncio.CancelledError)):
            await task
        async with asyncio.timeout(1):
            await ended.wait()


async def test_reset_fails_what_is_in_flight_and_opens_anew(
    commands: Commands, redis: "Redis"
) -> None:
    commands.reset()  # nothing is open yet
    before = await commands.execute("CLIENT", "ID")
    waiting = [asyncio.create_task(commands.execute("BLPOP", "list", 0)) for _ in range(3)]
    await asyncio.sleep(0.02)
    commands.reset()
    for task in waiting:
        with pytest.raises(RedisConnectionError):
            await task
    assert await commands.execute("CLIENT", "ID") != before
    assert redis.info("clients")["blocked_clients"] == 0


async def test_aclose_closes(redis_server: RedisServer, redis: "Redis") -> None:
    clients = redis.info("clients")["connected_clients"]
    never_opened = connect(redis_server.url, 5)
    await never_opened.aclose()
    commands = connect(redis_server.url, 5)
    await commands.execute("PING")
    waiting = asyncio.create_task(commands.execute("BLPOP", "list", 0))
    await asyncio.sleep(0.02)
    await commands.aclose()
    with pytest.raises(RedisConnectionError):
        await waiting
    for closed in never_opened, commands:
        with pytest.raises(RedisConnectionError):
            await closed.execute("PING")
    for _ in range(100):
        if redis.info("clients")["connected_clients"] == clients:
            break
        await asyncio.sleep(0.01)
    assert redis.info("clients")["connected_clients"] == clients


async def test_a_connection_that_the_server_closed_is_opened_anew(
    commands: Commands, redis: "Redis"
) -> None:
    for _ in range(3):
        assert await commands.execute("PING") == b"PONG"
        redis.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.02)


async def test_a_thousand_checks_at_once_are_no_outage(redis_server: RedisServer) -> None:
    """Under load the questions queue for some milliseconds. Each has its own time: what came now
    must not be refused because what came before it waited."""
    answered = refused = 0

    async def ask() -> None:
        nonlocal answered, refused
        while time.monotonic() < deadline:
            try:
                assert await store.find(token) is not None
                answered += 1
            except StoreUnavailable:
                refused += 1

    async with open_store(redis_server.url, timeout_seconds=0.25) as store:
        token = (await store.create(7, "laptop")).Token_Sesion
        deadline = time.monotonic() + 0.6
        await asyncio.gather(*(ask() for _ in range(1000)))
    assert (answered > 1000, refused) == (True, 0)


# Every form of URL.


async def whoami(url: str) -> tuple[str, str]:
    """The user and the database of a connection to the URL."""
    commands = connect(url, 2)
    try:
        info: bytes = await commands.execute("CLIENT", "INFO")
    finally:
        await commands.aclose()
    fields = dict(field.split("=", 1) for field in info.decode().split())
    return fields["user"], fields["db"]


@pytest.fixture(scope="module")
def tcp_server() -> Iterator[tuple[RedisServer, int]]:
    """A server with a port, and a user "ana" with the password "p@ss/w:rd"."""
    port = free_port()
    with RedisServer(port=str(port)) as server:
        with Redis(unix_socket_path=str(server.socket)) as redis:
            redis.acl_setuser(
                "ana", enabled=True, passwords="+p@ss/w:rd", keys="*", commands=["+@all"]
            )
        yield server, port


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:{port}", ("default", "0")),
        ("redis://127.0.0.1:{port}/3", ("default", "3")),
        ("redis://ana:p%40ss%2Fw%3Ard@127.0.0.1:{port}/3", ("ana", "3")),
        ("unix://{path}", ("default", "0")),
        ("unix://{path}?db=3", ("default", "3")),
        ("unix://ana:p%40ss%2Fw%3Ard@{path}", ("ana", "0")),
    ],
)
async def test_users_and_databases(
    tcp_server: tuple[RedisServer, int], url: str, expected: tuple[str, str]
) -> None:
    server, port = tcp_server
    assert await whoami(url.format(port=port, path=server.socket)) == expected


@pytest.mark.parametrize(
    "url", ["redis://ana:wrong@127.0.0.1:{port}", "redis://127.0.0.1:{port}/99"]
)
async def test_what_redis_refuses_in_the_handshake(
    tcp_server: tuple[RedisServer, int], url: str
) -> None:
    commands = connect(url.format(port=tcp_server[1]), 2)
    for _ in range(2):
        with pytest.raises(RedisError):
            await commands.execute("PING")
    await commands.aclose()


# TLS. The PyPI Valkey has none, so it is put before the server.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    options = (
        "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 "
        f"-subj /CN=sesiones -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    )
    subprocess.run(["openssl", "req", *options.split()], check=True, capture_output=True)
    return certificate, key


@contextlib.asynccontextmanager
async def tls_before(server: RedisServer, certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    """The port that speaks TLS for the server."""

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(str(server.socket))
        await asyncio.gather(pump(reader, redis_writer), pump(redis_reader, writer))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    listener = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    async with listener:
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            await asyncio.sleep(0.05)


async def test_tls(
    redis_server: RedisServer, redis: "Redis", certificate: tuple[Path, Path]
) -> None:
    async with tls_before(redis_server, certificate) as port:
        url = f"rediss://127.0.0.1:{port}/2?ssl_ca_certs={certificate[0]}"
        assert await whoami(url) == ("default", "2")
        commands = connect(url, 5)
        sent = [str(i) + "x" * 20_000 for i in range(100)]
        received = await asyncio.gather(*(commands.execute("ECHO", text) for text in sent))
        assert received == [text.encode() for text in sent]
        commands.reset()
        assert await commands.execute("PING") == b"PONG"
        await commands.aclose()


async def test_a_server_that_speaks_tls_itself(certificate: tuple[Path, Path]) -> None:
    port = free_port()
    files = [str(path) for path in certificate]
    server = RedisServer(
        tls_port=str(port),
        tls_cert_file=files[0],
        tls_key_file=files[1],
        tls_auth_clients="no",
    )
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(server)
        except RuntimeError as error:
            pytest.skip(f"this server has no TLS: {error}")
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate[0]}"
        async with open_store(url, timeout_seconds=5) as store:
            made = await asyncio.gather(*(store.create(user, "laptop") for user in range(100)))
            found = await asyncio.gather(*(store.find(sesion.Token_Sesion) for sesion in made))
            assert [sesion and sesion.ID_Sesion for sesion in found] == [
                sesion.ID_Sesion for sesion in made
            ]
        # No authority that this machine knows has signed it, and no plain text gets in.
        for refused in f"rediss://127.0.0.1:{port}", f"redis://127.0.0.1:{port}":
            async with open_store(refused, timeout_seconds=1) as store:
                with pytest.raises(StoreUnavailable):
                    await store.find(made[0].Token_Sesion)


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    redis_server: RedisServer,
    certificate: tuple[Path, Path],
    unheard: list[dict[str, Any]],
) -> None:
    async with tls_before(redis_server, certificate) as port:
        commands = connect(f"rediss://127.0.0.1:{port}", 2)
        with pytest.raises(RedisConnectionError):
            await commands.execute("PING")
        await commands.aclose()
    unheard.clear()  # the listener of this test complains of the handshake


# Sentinel: the master that it names, today's and tomorrow's.


def run(client: "Redis", *arguments: str | int) -> Any:
    return client.execute_command(*arguments)  # type: ignore[no-untyped-call]


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


until = partial(available, seconds=40)


async def test_sentinel_and_two_failovers() -> None:
    with (
        RedisSentinels(replicas=1, sentinels=1) as redis,
        socket.create_server(("127.0.0.1", 0)) as deaf,
    ):
        (first, second), (one, two) = redis.servers, redis.clients.values()
        ((sentinel_port, watch),) = redis.sentinels.items()
        # The first of the two Sentinels in the URL never answers; then the other is asked.
        silent = f"127.0.0.1:{deaf.getsockname()[1]}"
        url = f"redis+sentinel://{silent},127.0.0.1:{sentinel_port}/mymaster"
        async with open_store(url, timeout_seconds=0.25) as store:
            session = await until(lambda: store.create(7, "laptop"))
            token = session.Token_Sesion
            assert len(one.keys("*:h:*")) == 1
            wait_until(lambda: redis.replicated(first))

            # The master is demoted, but its connections stay open. (Sentinel would wait 8 s.)
            wait_until(lambda: failed_over(watch, first))
            wait_until(lambda: two.info("replication")["role"] == "master")
            one.replicaof("127.0.0.1", str(second))
            assert (await until(lambda: store.find(token))).ID_Sesion == session.ID_Sesion
            await until(lambda: store.probe(5))
            other = (await until(lambda: store.create(7, "phone"))).Token_Sesion
            assert len(two.keys("*:h:*")) == 2
            wait_until(lambda: redis.replicated(second))

            # The new master dies.
            redis.servers[second].stop(signal.SIGKILL)
            wait_until(lambda: one.info("replication")["role"] == "master")
            assert (await until(lambda: store.find(other))).Dispositivo == "phone"
            assert await store.end(token, other) == 1
            assert await store.find(other) is None
        # Sentinel's connection to the test is left.
        wait_until(lambda: len(watch.client_list()) == 1, 1)


async def test_a_master_that_is_replaced_while_it_answers() -> None:
    """Sentinel would leave it a master for 8 s, and its connections open."""
    with RedisSentinels(replicas=2, sentinels=3) as redis:
        (old,) = redis.named()
        async with (
            open_store(redis.url, timeout_seconds=0.25) as store,
            open_store(redis.url, timeout_seconds=0.25) as other,
        ):
            token = (await until(lambda: store.create(7, "laptop"))).Token_Sesion
            assert (await until(lambda: other.find(token))).ID_Usuario == 7
            wait_until(lambda: redis.replicated(old))
            watch = next(iter(redis.sentinels.values()))
            await asyncio.to_thread(wait_until, lambda: failed_over(watch, old))
            await asyncio.to_thread(wait_until, lambda: not redis.named() & {old})
            await asyncio.sleep(1)
            assert redis.clients[old].info("replication")["role"] == "master"
            assert await until(lambda: store.end(token, token)) == 1
            assert await until(lambda: other.find(token)) is None
            assert redis.clients[old].exists(f"sesiones:{{{token[4:6]}}}:h:{tokens.digest(token)}")


async def test_what_answers_is_no_sentinel(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three, the first or the last to be asked: a majority is there."""
    monkeypatch.setattr(single, "FOLLOW_SECONDS", 0.05)
    reply = b""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1000):
                writer.write(reply)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    stranger = server.sockets[0].getsockname()[1]
    with RedisSentinels(replicas=0, sentinels=2) as redis:
        async with server:
            for reply in b"+OK\r\n", b":1\r\n", b"*0\r\n", b"*1\r\n*2\r\n$4\r\nname\r\n$1\r\nx\r\n":
                for ports in (stranger, *redis.sentinels), (*redis.sentinels, stranger):
                    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
                    async with open_store(
                        f"redis+sentinel://{hosts}/mymaster", timeout_seconds=5
                    ) as store:
                        token = (await until(partial(store.create, 7, "laptop"))).Token_Sesion
                        tasks = asyncio.all_tasks()
                        await asyncio.sleep(0.2)  # it has looked who is the master
                        assert await store.find(token) is not None
                        assert asyncio.all_tasks() >= tasks, reply


async def test_a_master_that_refuses_writes() -> None:
    """Checks answer, while a majority of the Sentinels says that it is the master."""
    with (
        RedisSentinels(replicas=0, sentinels=1) as redis,
        socket.create_server(("127.0.0.1", 0)) as deaf,
    ):
        (master,) = redis.clients.values()
        ((sentinel_port, watch),) = redis.sentinels.items()
        # All that docs/acl.conf gives the service at a Sentinel.
        run(watch, "ACL", "SETUSER", "admin", "on", "nopass", "~*", "&*", "+@all")
        run(watch, "AUTH", "admin", "x")
        allowed = ("+sentinel|get-master-addr-by-name",)
        run(watch, "ACL", "SETUSER", "default", "reset", "on", "nopass", *allowed)
        at = f"127.0.0.1:{sentinel_port}"
        silent = f"127.0.0.1:{deaf.getsockname()[1]}"
        async with (
            open_store(f"redis+sentinel://{at}/mymaster", timeout_seconds=1) as store,
            open_store(f"redis+sentinel://{at},{silent}/mymaster", timeout_seconds=0.25) as cut_off,
            open_store(
                f"redis+sentinel://{at},{at},{silent}/mymaster", timeout_seconds=0.25
            ) as most,
        ):
            stores = store, cut_off, most
            token = (await until(lambda: store.create(7, "laptop"))).Token_Sesion
            for each in stores:
                assert await each.find(token) is not None
            master.config_set("min-replicas-to-write", 1)
            assert await store.find(token) is not None
            assert await most.find(token) is not None
            with pytest.raises(StoreUnavailable):
                await cut_off.find(token)
            for rule in allowed:
                run(watch, "ACL", "SETUSER", "default", rule.replace("+", "-"))
                async with open_store(
                    f"redis+sentinel://{at}/mymaster", timeout_seconds=1
                ) as hindered:
                    with pytest.raises(StoreUnavailable):
                        await hindered.find(token)
                run(watch, "ACL", "SETUSER", "default", rule)

            run(watch, "SENTINEL", "REMOVE", "mymaster")
            run(watch, "SENTINEL", "MONITOR", "mymaster", "127.0.0.1", free_port(), 1)
            for each in stores:
                with pytest.raises(StoreUnavailable):
                    await each.find(token)
            master.config_set("min-replicas-to-write", 0)


def failed_over(watch: "Redis", master: int) -> bool:
    """Whether Sentinel names another. Else it is asked for one: until it knows its replicas well
    enough it has none, and a failover that is slow is given up."""
    if int(run(watch, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")[1]) != master:
        return True
    with contextlib.suppress(ResponseError):  # NOGOODSLAVE, INPROG
        run(watch, "SENTINEL", "FAILOVER", "mymaster")
    return False
