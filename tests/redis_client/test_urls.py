"""Every form of URL on a real server, and TLS."""

import asyncio
import contextlib
import shutil
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from sesiones.redis_client import connect
from sesiones.sesion import StoreUnavailable
from tests.harness.certificates import make_certificate
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer
from tests.harness.stores import open_store

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_complaint")]


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
        with server.client() as redis:
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
async def test_url_names_the_user_and_the_database(
    tcp_server: tuple[RedisServer, int], url: str, expected: tuple[str, str]
) -> None:
    server, port = tcp_server
    assert await whoami(url.format(port=port, path=server.socket)) == expected


@pytest.mark.parametrize(
    "url", ["redis://ana:wrong@127.0.0.1:{port}", "redis://127.0.0.1:{port}/99"]
)
async def test_handshake_that_redis_refuses_is_a_redis_error(
    tcp_server: tuple[RedisServer, int], url: str
) -> None:
    commands = connect(url.format(port=tcp_server[1]), 2)
    for _ in range(2):
        with pytest.raises(RedisError):
            await commands.execute("PING")
    await commands.aclose()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    return make_certificate(tmp_path_factory.mktemp("tls"))


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


async def test_rediss_url_reaches_a_server_behind_tls(
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


async def test_server_with_tls_takes_no_unknown_certificate_and_no_plain_text(
    certificate: tuple[Path, Path],
) -> None:
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


async def test_certificate_of_an_unknown_authority_is_refused(
    redis_server: RedisServer,
    certificate: tuple[Path, Path],
    no_complaint: list[dict[str, Any]],
) -> None:
    async with tls_before(redis_server, certificate) as port:
        commands = connect(f"rediss://127.0.0.1:{port}", 2)
        with pytest.raises(RedisConnectionError):
            await commands.execute("PING")
        await commands.aclose()
    no_complaint.clear()  # the listener of this test complains of the handshake
