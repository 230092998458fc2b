"""TLS to one server, behind Sentinel and on a Cluster, by the authorities of a file."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from sesiones.cli import main
from sesiones.cli.exits import Exit
from sesiones.redis_client import connect
from sesiones.sesion import StoreUnavailable
from tests.harness.certificates import make_certificate
from tests.harness.ports import free_port
from tests.harness.redis_binary import find_binary
from tests.harness.redis_server import RedisCluster, RedisServer, wait_until
from tests.harness.service import Service
from tests.harness.stores import available, open_store

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def ca_file(certificate: tuple[Path, Path]) -> str:
    return str(certificate[0])


@pytest.fixture(scope="module")
def options(certificate: tuple[Path, Path]) -> dict[str, Any]:
    """Of a server that speaks TLS to clients, replicas and other nodes."""
    path, key = map(str, certificate)
    options: dict[str, Any] = {
        "tls_cert_file": path,
        "tls_key_file": key,
        "tls_ca_cert_file": path,
        "tls_auth_clients": "no",
    }
    try:
        with RedisServer(tls_port=str(free_port()), **options):
            return options
    except RuntimeError as error:
        pytest.skip(f"this server has no TLS: {error}")


@contextmanager
def server_url(options: dict[str, Any]) -> Iterator[str]:
    with RedisServer(tls_port=str(free_port()), **options) as server:
        yield f"rediss://127.0.0.1:{server.tls_port}"


@contextmanager
def cluster_url(options: dict[str, Any]) -> Iterator[str]:
    with RedisCluster(2, tls_cluster="yes", **options) as cluster:
        ports = [server.tls_port for server in cluster.servers.values()]
        yield "rediss+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)


@contextmanager
def sentinel_url(options: dict[str, Any]) -> Iterator[str]:
    """A master and a Sentinel that speak TLS alone."""
    port, sentinel_port = free_port(), free_port()
    with ExitStack() as stack:
        server = stack.enter_context(
            RedisServer(tls_port=str(port), tls_replication="yes", **options)
        )
        folder = server.socket.parent
        lines = [
            f"bind 127.0.0.1\nport 0\ntls-port {sentinel_port}\ntls-replication yes\ndir {folder}",
            f"logfile {folder}/sentinel.log\nunixsocket {folder}/sentinel.sock",
            *(f"{name.replace('_', '-')} {value}" for name, value in options.items()),
            f"sentinel monitor mymaster 127.0.0.1 {port} 1",
        ]
        (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
        command = [find_binary(), str(folder / "sentinel.conf"), "--sentinel"]
        process = subprocess.Popen(command, start_new_session=True)
        stack.callback(process.wait, timeout=10)
        stack.callback(process.terminate)
        sentinel = stack.enter_context(
            Redis(
                host="127.0.0.1",
                port=sentinel_port,
                ssl=True,
                ssl_ca_certs=options["tls_cert_file"],
            )
        )

        def answers() -> bool:
            try:
                return bool(sentinel.ping())
            except RedisError:
                return False

        wait_until(answers, "the Sentinel")
        yield f"rediss+sentinel://127.0.0.1:{sentinel_port}/mymaster"


URLS = {"server": server_url, "sentinel": sentinel_url, "cluster": cluster_url}


@pytest.mark.parametrize("kind", URLS)
async def test_server_whose_authority_is_in_the_file_serves_and_no_other_does(
    options: dict[str, Any], ca_file: str, kind: str
) -> None:
    with URLS[kind](options) as url:
        async with open_store(url, redis_ca_file=ca_file) as store:
            made = await asyncio.gather(
                *(available(lambda user=user: store.create(user, "laptop")) for user in range(20))  # type: ignore[misc]
            )
            found = await asyncio.gather(*(store.find(sesion.Token_Sesion) for sesion in made))
            assert [sesion and sesion.ID_Sesion for sesion in found] == [
                sesion.ID_Sesion for sesion in made
            ]
        plain = url.replace("rediss", "redis", 1)
        for refused in open_store(url, timeout_seconds=1), open_store(plain, timeout_seconds=1):
            async with refused as store:
                with pytest.raises(StoreUnavailable):
                    await store.find(made[0].Token_Sesion)


@pytest.mark.parametrize("kind", ["server", pytest.param("cluster", marks=pytest.mark.cluster)])
async def test_service_and_commands_use_the_file(
    options: dict[str, Any], ca_file: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with URLS[kind](options) as url:
        variables = {
            "SESIONES_REDIS_URL": url,
            "SESIONES_REDIS_CA_FILE": ca_file,
            "SESIONES_REDIS_TIMEOUT": "5",
        }
        with Service(**variables) as service:
            token = service.new_session(7)["Token_Sesion"]
            headers = {"x-auth-token": token}
            assert service.request("GET", "/sesiones/self", headers).status == 200
            assert "answers: " in service.log  # what the watch asks
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        # In a thread, because each command has an event loop of its own.
        assert await asyncio.to_thread(main, ["users", "7", "--end-all"]) == Exit.OK
        assert await asyncio.to_thread(main, ["doctor"]) == Exit.OK
        monkeypatch.delenv("SESIONES_REDIS_CA_FILE")
        assert await asyncio.to_thread(main, ["users", "7"]) == Exit.UNAVAILABLE


async def test_renewed_file_counts_from_the_next_connection_on(
    options: dict[str, Any], ca_file: str, tmp_path: Path
) -> None:
    other, _ = make_certificate(tmp_path)
    file = tmp_path / "ca.pem"
    shutil.copy(other, file)
    with server_url(options) as url:
        commands = connect(url, 5, str(file))
        with pytest.raises(RedisConnectionError, match="certificate verify failed"):
            await commands.execute("PING")
        shutil.copy(ca_file, file)
        assert await commands.execute("PING") == b"PONG"
        file.unlink()
        assert await commands.execute("PING") == b"PONG"  # over the connection that is open
        commands.reset()
        with pytest.raises(RedisConnectionError, match="No such file"):
            await commands.execute("PING")
        await commands.aclose()


async def test_option_of_the_url_wins_over_the_file(
    options: dict[str, Any], ca_file: str, tmp_path: Path
) -> None:
    other, _ = make_certificate(tmp_path)
    with server_url(options) as url:
        commands: Any = connect(f"{url}?ssl_ca_certs={ca_file}", 5, str(other))
        assert await commands.execute("PING") == b"PONG"
        await commands.aclose()


@pytest.mark.parametrize("command", [["serve"], ["users", "7"], ["stats"], ["doctor"]])
@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        (None, 0o600, "cannot be read: No such file or directory"),
        ("", 0o600, "names a file without a certificate in PEM"),
        ("no certificate\n", 0o600, "names a file without a certificate in PEM"),
    ],
)
def test_bad_file_is_a_bad_setting(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    content: str | None,
    mode: int,
    problem: str,
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    flags = ["--redis-url", "rediss://127.0.0.1:1", "--redis-ca-file", str(file)]
    assert main([*command, *flags]) == Exit.USAGE
    assert capsys.readouterr() == ("", f"sesiones: --redis-ca-file {problem}\n")


@pytest.mark.parametrize("path", ["", "/", "a\0b"])
def test_path_of_no_file_is_a_bad_setting(capsys: pytest.CaptureFixture[str], path: str) -> None:
    flags = ["--redis-url", "rediss://127.0.0.1:1", "--redis-ca-file", path]
    assert main(["users", "7", *flags]) == Exit.USAGE
    out, errors = capsys.readouterr()
    assert (out, errors.count("\n")) == ("", 1)
    assert errors.startswith("sesiones: --redis-ca-file ")


@pytest.mark.parametrize(
    "url", ["redis://h", "unix:///run/redis.sock", "redis+sentinel://h/m", "redis+cluster://h"]
)
def test_file_with_a_url_without_tls_is_a_bad_setting(
    capsys: pytest.CaptureFixture[str], url: str, ca_file: str
) -> None:
    """The connection would not be encrypted, though the setting says so."""
    assert main(["users", "7", "--redis-url", url, "--redis-ca-file", ca_file]) == Exit.USAGE
    assert capsys.readouterr().err == (
        "sesiones: SESIONES_REDIS_CA_FILE needs a SESIONES_REDIS_URL of rediss://, "
        "rediss+sentinel:// or rediss+cluster://\n"
    )


def test_library_refuses_a_bad_file() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        open_store("rediss://h", redis_ca_file="/none")
    with pytest.raises(ValueError, match="must be of type str"):
        open_store("rediss://h", redis_ca_file=7)
