"""The command line over real processes: where it listens, whom it lets in, how it stops."""

import asyncio
import fcntl
import http.client
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import fields
from pathlib import Path

import pytest
import uvicorn

import sesiones
from sesiones.cli import main
from sesiones.http.app import create_app
from sesiones.http.fast_check import FastCheckProtocol
from sesiones.http.protocol import DRAIN_SECONDS, HttpProtocol
from sesiones.http.server import _Server
from sesiones.http.sockets import ListenError, listen
from sesiones.settings import Settings, SettingsError
from tests.harness import asgi
from tests.harness.faults import hung
from tests.harness.processes import children, connects, is_running
from tests.harness.redis_server import RedisServer, free_port
from tests.harness.service import Service, comes_true, environment, refused
from tests.harness.stores import KEY

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
SESSION = "ID_Usuario=7&Dispositivo=laptop"
STOPS = [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)]


@contextmanager
def running(*flags: str, **variables: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """`sesiones serve` anywhere, and the line that says where it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sesiones", "serve", *flags],
        env=environment() | variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr as log:
        try:
            line = next((line for line in log if "listening on" in line), "")
            # Nobody reads on: its few lines fit into the pipe.
            yield process, line
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def refused_serve(*flags: str, **variables: str) -> tuple[int, str]:
    return refused([sys.executable, "-m", "sesiones", "serve", *flags], None, **variables)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


def status_over(path: Path) -> int:
    """Of a request over the unix socket; 401 says that somebody serves."""
    connection = UnixConnection(path)
    try:
        connection.request("GET", "/sesiones/self")
        return connection.getresponse().status
    finally:
        connection.close()


# Where it listens.


def test_it_listens_on_loopback_alone(service: Service) -> None:
    assert service.request("GET", "/sesiones/self").status == 401
    # All of 127.0.0.0/8 is this machine: a server on 0.0.0.0 would answer here as well.
    assert not connects(service.port, "127.0.0.2")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_beyond_loopback_it_wants_a_service_key(host: str) -> None:
    code, line = refused_serve("--host", host, "--port", "0")
    assert code == 2
    assert "SESIONES_SERVICE_KEY" in line


@pytest.mark.parametrize("host", ["0", "::0", "0x0", "::ffff:0.0.0.0", "192.0.2.1", "2001:db8::1"])
def test_no_other_spelling_gets_around_that(host: str) -> None:
    with (
        pytest.raises(SettingsError, match="SESIONES_SERVICE_KEY"),
        listen(Settings(host=host, port=0)),
    ):
        pass


def test_a_name_counts_as_the_address_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(address: str) -> Callable[..., object]:
        return lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

    # In place of a name server: nothing here leaves the machine.
    monkeypatch.setattr(socket, "getaddrinfo", resolve("192.0.2.1"))
    with (
        pytest.raises(SettingsError, match="SESIONES_SERVICE_KEY"),
        listen(Settings(host="sesiones.example", port=0)),
    ):
        pass
    monkeypatch.setattr(socket, "getaddrinfo", resolve("127.0.0.1"))
    with listen(Settings(host="sesiones.example", port=0)) as ((listener,), url):
        assert listener.getsockname()[0] == "127.0.0.1"
        assert url == f"http://127.0.0.1:{listener.getsockname()[1]}"


def resolves_to(*addresses: str) -> Callable[..., object]:
    """getaddrinfo() in place of a name server: nothing here leaves the machine."""

    def resolve(_host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    return resolve


@pytest.mark.parametrize(
    "addresses",
    [
        ("::1", "127.0.0.1"),
        ("127.0.0.1", "::1"),
        ("127.0.0.1", "127.0.0.2", "::1"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
@pytest.mark.parametrize("port", [0, None])
def test_a_name_is_listened_on_at_all_of_its_addresses_and_one_port(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...], port: int | None
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to(*addresses))
    wanted = free_port() if port is None else port
    with listen(Settings(host="sesiones.example", port=wanted)) as (listeners, url):
        names = [listener.getsockname() for listener in listeners]
        assert [name[0] for name in names] == list(dict.fromkeys(addresses))
        (shared,) = {name[1] for name in names}
        assert port == 0 or shared == wanted
        assert url == f"http://127.0.0.1:{shared}"
        monkeypatch.undo()
        for address in addresses:
            assert connects(shared, address)
    assert not connects(shared)


def test_port_0_is_one_that_is_free_on_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("127.0.0.1", "127.0.0.2"))
    with ExitStack() as stack:
        bind = socket.socket.bind
        taken: list[int] = []

        class Busy(socket.socket):
            def bind(self, address: tuple[str, int]) -> None:  # type: ignore[override]
                if address[0] == "127.0.0.2" and len(taken) < 3:
                    taken.append(address[1])
                    other = stack.enter_context(socket.socket())
                    bind(other, address)
                    other.listen()
                bind(self, address)

        monkeypatch.setattr(socket, "socket", Busy)
        with listen(Settings(host="sesiones.example", port=0)) as (listeners, _):
            ports = {listener.getsockname()[1] for listener in listeners}
            assert len(listeners) == 2
            assert len(ports) == 1
            assert ports.isdisjoint(taken)


@pytest.mark.parametrize("addresses", [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1")])
def test_a_port_that_is_taken_on_one_address_is_taken(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to(*addresses))
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=str(port)), listen(Settings(host="x", port=port)):
            pass
        monkeypatch.undo()
        assert not connects(port, "127.0.0.1")  # nothing is left open


def test_an_address_that_the_machine_does_not_have_is_left_out_of_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As ::1 is of localhost where IPv6 is off."""
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("2001:db8::1", "127.0.0.1"))
    settings = Settings(host="sesiones.example", port=0, service_key=(KEY,))
    with listen(settings) as ((listener,), _):
        assert listener.getsockname()[0] == "127.0.0.1"
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("2001:db8::1", "192.0.2.1"))
    with pytest.raises(ListenError, match=r"sesiones\.example"), listen(settings):
        pass


@pytest.mark.parametrize("addresses", [("127.0.0.1", "192.0.2.1"), ("::1", "127.0.0.1", "::")])
def test_each_address_of_a_name_must_be_loopback_without_a_key(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to(*addresses))
    with (
        pytest.raises(SettingsError, match="SESIONES_SERVICE_KEY"),
        listen(Settings(host="sesiones.example", port=0)),
    ):
        pass


def test_both_wildcards_share_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("0.0.0.0", "::"))
    with listen(Settings(host="any", port=0, service_key=(KEY,))) as (listeners, _):
        assert len({listener.getsockname()[1] for listener in listeners}) == 1


TWO_ADDRESSES = """
import socket, sys
found = socket.getaddrinfo
def getaddrinfo(host, port, *args, **options):
    if host != "localhost":
        return found(host, port, *args, **options)
    return [(socket.AF_INET6, 1, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, 1, 6, "", ("127.0.0.1", port))]
socket.getaddrinfo = getaddrinfo
from sesiones.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_localhost_is_served_on_both_of_its_addresses(
    redis_server: RedisServer, tmp_path: Path, workers: str
) -> None:
    program = tmp_path / "two.py"
    program.write_text(TWO_ADDRESSES)

    class Both(Service):
        command = (sys.executable, str(program))

    flags = "--host", "localhost", "--workers", workers
    with Both(*flags, SESIONES_REDIS_URL=redis_server.url) as service:
        for host in "127.0.0.1", "::1":
            connection = http.client.HTTPConnection(host, service.port, timeout=20)
            connection.request("GET", "/livez")
            assert connection.getresponse().status == 200
            connection.close()
        assert "listening on ('::1', " in service.log
        assert service.stop() == 0


def test_with_a_service_key_it_listens_anywhere(redis_server: RedisServer) -> None:
    variables = {"SESIONES_REDIS_URL": redis_server.url, "SESIONES_SERVICE_KEY": KEY}
    with running("--host", "0.0.0.0", "--port", "0", **variables) as (_, line):
        match = re.search(r"listening on \('0\.0\.0\.0', (\d+)\)", line)
        assert match, line
        connection = http.client.HTTPConnection("127.0.0.2", int(match[1]), timeout=20)
        connection.request("POST", "/sesiones", SESSION, FORM)
        assert connection.getresponse().status == 401
        connection.close()


def test_ipv6_loopback_needs_no_key() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        with listen(Settings(host="::1", port=0)) as (_, url):
            assert url.startswith("http://[::1]:")
    except ListenError:
        pytest.skip("no IPv6 loopback")


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "256.256.256.256", "no such host", "\udcff"])
def test_a_host_that_is_none_is_one_line(host: str) -> None:
    with (
        pytest.raises((ListenError, SettingsError), match=r"\A[^\n]+\Z"),
        listen(Settings(host=host, port=0)),
    ):
        pass


def test_a_taken_port_is_one_line_and_exit_1(redis_server: RedisServer) -> None:
    with Service(SESIONES_REDIS_URL=redis_server.url) as service:
        code, line = refused_serve("--port", str(service.port))
        assert code == 1
        assert str(service.port) in line
        assert service.request("GET", "/sesiones/self").status == 401


def test_a_unix_socket(redis_server: RedisServer, tmp_path: Path) -> None:
    path = tmp_path / "sesiones.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))  # a stale file: nobody listens
    flags = ("--uds", str(path), "--workers", "2")
    with running(*flags, SESIONES_REDIS_URL=redis_server.url) as (process, _):
        assert comes_true(lambda: answers(path), 10)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        # Whoever reaches the socket may make sessions: the file's mode decides who does.
        connection = UnixConnection(path)
        connection.request("POST", "/sesiones", SESSION, FORM)
        assert connection.getresponse().status == 201
        connection.close()

        code, line = refused_serve("--uds", str(path))
        assert code == 1
        assert str(path) in line
        assert answers(path)  # undisturbed

        process.terminate()
        assert process.wait(timeout=10) == 0
    assert not path.exists()


def answers(path: Path) -> bool:
    try:
        return status_over(path) == 401
    except OSError:
        return False


def test_two_that_start_at_once_do_not_take_each_others_unix_socket(tmp_path: Path) -> None:
    settings = Settings(uds=str(tmp_path / "sesiones.sock"))
    with listen(settings):
        # uvicorn has not begun to serve on the first, but the second must not think it stale.
        with pytest.raises(ListenError), listen(settings):
            pass
        assert os.path.exists(settings.uds or "")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_restart_with_an_overlap_keeps_the_new_unix_socket(
    slow_redis: RedisServer, tmp_path: Path, workers: str
) -> None:
    """The old process still finishes a request while the new one listens already."""
    path = tmp_path / "sesiones.sock"
    flags = "--uds", str(path), "--workers", workers
    variables = {"SESIONES_REDIS_URL": slow_redis.url, "SESIONES_REDIS_TIMEOUT": "8"}
    with running(*flags, **variables) as (old, _):
        assert comes_true(lambda: answers(path), 10)
        pending = UnixConnection(path)
        with closing(pending), hung(slow_redis):
            pending.request("POST", "/sesiones", SESSION, FORM)
            time.sleep(0.3)
            old.terminate()
            assert comes_true(lambda: not listens(path), 5)
            with running(*flags, **variables) as (new, _):
                assert comes_true(lambda: listens(path), 10)
                assert old.poll() is None
                slow_redis.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
                assert pending.getresponse().status == 201
                assert old.wait(timeout=10) == 0
                assert answers(path)
                new.terminate()
                assert new.wait(timeout=10) == 0
                assert not path.exists()


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def test_a_unix_socket_of_another_server_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "sesiones.sock"
    settings = Settings(uds=str(path))
    for _ in range(20):  # file systems use inode numbers again
        with ExitStack() as stack:
            with listen(settings) as ((listener,), _):
                listener.close()  # as a server does that finishes its requests
                stack.enter_context(listen(settings))
            assert listens(path)
        assert not path.exists()


def test_a_unix_socket_whose_mode_was_changed_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "sesiones.sock"
    with listen(Settings(uds=str(path))):
        path.chmod(0o666)
    assert not path.exists()


def test_servers_that_start_at_once_on_a_stale_unix_socket_leave_one_that_listens(
    tmp_path: Path,
) -> None:
    path = tmp_path / "sesiones.sock"
    settings = Settings(uds=str(path))
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(path))
        barrier, ended = threading.Barrier(9), threading.Event()
        served: list[str] = []

        def start(
            barrier: threading.Barrier = barrier,
            ended: threading.Event = ended,
            served: list[str] = served,
        ) -> None:
            barrier.wait()
            with suppress(ListenError), listen(settings):
                served.append("")
                ended.wait()

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        barrier.wait()
        assert comes_true(lambda n=threads: sum(t.is_alive() for t in n) == 1, 5)  # type: ignore[misc]
        assert listens(path)
        ended.set()
        for thread in threads:
            thread.join()
        assert len(served) == 1
        assert not path.exists()


def test_a_folder_that_another_process_has_locked_delays_a_start_for_a_second(
    tmp_path: Path,
) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    begun = time.monotonic()
    with listen(Settings(uds=str(tmp_path / "sesiones.sock"))):
        assert time.monotonic() - begun < 3
    os.close(folder)


def test_a_server_that_hangs_keeps_its_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "sesiones.sock"
    with ExitStack() as stack:
        hanging = stack.enter_context(socket.socket(socket.AF_UNIX))
        hanging.bind(str(path))
        hanging.listen(0)
        for _ in range(2):  # until there is no room for another connection
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(str(path))
        with pytest.raises(ListenError, match="in use"), listen(Settings(uds=str(path))):
            pass
        assert path.exists()


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    code, line = refused_serve("--uds", str(path))
    assert (code, path.read_text()) == (1, "data")
    assert str(path) in line


def test_a_unix_socket_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    assert refused_serve("--uds", str(tmp_path / "absent" / "s"))[0] == 1
    assert refused_serve("--uds", "/tmp/" + "x" * 200)[0] == 1


def test_it_stops_well_when_its_unix_socket_was_removed(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    path = tmp_path / "sesiones.sock"
    with running("--uds", str(path), SESIONES_REDIS_URL=redis_server.url) as (process, _):
        assert comes_true(lambda: answers(path), 10)
        path.unlink()
        process.terminate()
        assert process.wait(timeout=10) == 0


# Whom it lets in.


def test_without_a_key_serve_opens_post_and_put(redis_server: RedisServer) -> None:
    with Service(SESIONES_REDIS_URL=redis_server.url) as service:
        made = service.request("POST", "/sesiones", FORM, SESSION)
        assert made.status == 201
        updated = service.request(
            "PUT", "/sesiones", {"Content-Type": "application/json"}, made.body
        )
        assert (updated.status, updated.json()) == (200, made.json())


@pytest.mark.anyio
async def test_without_a_key_create_app_elsewhere_does_not(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in fields(Settings):
        monkeypatch.delenv(f"SESIONES_{setting.name.upper()}", raising=False)
    monkeypatch.setenv("SESIONES_REDIS_URL", redis_server.url)
    app = create_app()
    for method in "POST", "PUT":
        reply = await asgi.request(app, method, "/sesiones", FORM.items(), SESSION.encode())
        assert reply.status == 401
        assert reply.headers["www-authenticate"] == 'Bearer realm="sesiones"'


def test_keys_rotate(redis_server: RedisServer) -> None:
    def posts(service: Service, *keys: str) -> list[int]:
        return [
            service.request(
                "POST", "/sesiones", FORM | {"Authorization": f"Bearer {key}"}, SESSION
            ).status
            for key in keys
        ]

    old, new, older = "o" * 32, "n" * 32, "x" * 32
    variables = {"SESIONES_REDIS_URL": redis_server.url, "SESIONES_SERVICE_KEY": f"{old}, {new}"}
    with Service(**variables) as service:
        assert posts(service, old, new, older, f"{old}, {new}") == [201, 201, 401, 401]


@pytest.mark.parametrize(
    ("trusted", "shown"),
    [
        ((), "127.0.0.1"),
        (("127.0.0.1",), "203.0.113.9"),
        (("10.0.0.0/8, 127.0.0.0/8",), "203.0.113.9"),
        (("10.0.0.0/8",), "127.0.0.1"),
        (("*",), "203.0.113.9"),
    ],
)
def test_forwarded_headers_are_not_believed_unless_asked(
    redis_server: RedisServer, trusted: tuple[str, ...], shown: str
) -> None:
    flags = [word for address in trusted for word in ("--forwarded-allow-ips", address)]
    token = "ses_" + "A" * 45
    variables = {"SESIONES_REDIS_URL": redis_server.url, "SESIONES_ACCESS_LOG": "1"}
    with Service(*flags, **variables) as service:
        service.request(
            "DELETE",
            f"/sesiones/logout?Token_Sesion={token}",
            {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"},
        )
        assert comes_true(lambda: "DELETE" in service.log, 5)
        (line,) = [line for line in service.log.splitlines() if "DELETE" in line]
        assert f" {shown}:" in line
        assert token not in service.log


@pytest.mark.parametrize(("trusted", "shown"), [("*", "203.0.113.9:0 - "), ("127.0.0.1", " - ")])
def test_over_a_unix_socket_only_the_asterisk_believes_forwarded_headers(
    redis_server: RedisServer, tmp_path: Path, trusted: str, shown: str
) -> None:
    path = tmp_path / "sesiones.sock"
    flags = "--uds", str(path), "--forwarded-allow-ips", trusted, "--access-log", "1"
    with running(*flags, SESIONES_REDIS_URL=redis_server.url) as (process, _):
        assert comes_true(lambda: listens(path), 10)
        connection = UnixConnection(path)
        connection.request("GET", "/nada", headers={"X-Forwarded-For": "203.0.113.9"})
        assert connection.getresponse().status == 404
        connection.close()
        assert process.stderr is not None
        line = next(line for line in process.stderr if "/nada" in line)
        assert f'{shown}"GET /nada' in line
        assert trusted == "*" or "203.0.113.9" not in line


def test_the_access_log_is_off_by_default(service: Service) -> None:
    service.request("GET", "/sesiones/self?unlogged")
    assert "unlogged" not in service.log


# How it speaks.


def test_a_connection_is_kept_and_dated_but_not_signed(service: Service) -> None:
    connection = kept_alive(service)
    connection.connect()
    kept = connection.sock
    paths = "/sesiones/self", "/sesiones/verificar", "/nada", "/sesiones/self"
    for path in paths:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.headers.get_all("date") is not None
        assert len(response.headers.get_all("date", [])) == 1
        assert response.headers["server"] is None
        assert connection.sock is kept
    connection.close()


def test_help_names_every_setting() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "sesiones", "serve", "--help"], capture_output=True, text=True
    )
    assert shown.returncode == 0
    for setting in fields(Settings):
        assert f"--{setting.name.replace('_', '-')} " in shown.stdout
    assert "SESIONES_" in shown.stdout


def test_version() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "sesiones", "--version"], capture_output=True, text=True
    )
    assert (shown.returncode, shown.stdout) == (0, f"{sesiones.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["sirve"], ["serve", "--puerto", "1"], ["serve", "x"]])
def test_an_unknown_command_or_flag_is_exit_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


# How it stops.


@pytest.fixture(scope="module")
def slow_redis() -> Iterator[RedisServer]:
    """A server that the tests here hold up with SIGSTOP."""
    with RedisServer() as server:
        yield server


@contextmanager
def in_flight(service: Service, token: str) -> Iterator[list[http.client.HTTPConnection]]:
    """Checks and a POST that wait for Redis, each on a connection of its own."""
    with ExitStack() as stack:
        post, *checks = [stack.enter_context(closing(kept_alive(service))) for _ in range(9)]
        for check in checks:
            check.request("GET", "/sesiones/self", headers={"x-auth-token": token})
            time.sleep(0.005)  # not all in one batch
        post.request("POST", "/sesiones", SESSION, FORM)
        time.sleep(0.2)  # until the service has read them
        yield [*checks, post]


def kept_alive(service: Service) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)


def new_session(service: Service) -> str:
    made = service.request("POST", "/sesiones", FORM, SESSION)
    assert made.status == 201
    token: str = made.json()["Token_Sesion"]
    return token


@pytest.mark.parametrize(("workers", "number"), STOPS)
def test_it_finishes_what_is_in_flight(
    slow_redis: RedisServer, workers: int, number: signal.Signals
) -> None:
    service = Service(
        "--workers",
        str(workers),
        SESIONES_REDIS_URL=slow_redis.url,
        SESIONES_REDIS_TIMEOUT="8",
    )
    with service, closing(kept_alive(service)) as idle:
        assert service.process is not None
        token = new_session(service)
        idle.request("GET", "/sesiones/self")
        assert idle.getresponse().read()
        pids = children(service.process.pid)
        assert len(pids) >= (workers if workers > 1 else 0)
        with hung(slow_redis), in_flight(service, token) as pending:
            service.process.send_signal(number)
            assert idle.sock.recv(1) == b""  # nothing is owed
            assert service.process.poll() is None
            slow_redis.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
            statuses = [connection.getresponse().status for connection in pending]
            assert statuses == [200] * 8 + [201]
        begun = time.monotonic()
        assert service.process.wait(timeout=10) == 0
        assert time.monotonic() - begun < 3
        # The workers are gone, and so is multiprocessing's helper, which notices a moment later.
        assert comes_true(lambda: not any(map(is_running, pids)), 3)
        assert "Traceback" not in service.log
        assert "ERROR" not in service.log


@pytest.mark.parametrize("http", ["fast", "httptools"])
def test_a_request_on_an_idle_connection_is_still_answered(
    redis_server: RedisServer, http: str
) -> None:
    """Its client cannot know yet that the service stops."""
    with (
        Service("--http", http, SESIONES_REDIS_URL=redis_server.url) as service,
        ExitStack() as stack,
    ):
        header = {"x-auth-token": new_session(service)}
        # Connections on which nothing was asked yet, a check, and something else.
        connections = [stack.enter_context(closing(kept_alive(service))) for _ in range(9)]
        for number, connection in enumerate(connections):
            connection.connect()
            if number % 3 == 1:
                connection.request("GET", "/sesiones/self", headers=header)
            elif number % 3 == 2:
                connection.request("POST", "/sesiones", SESSION, FORM)
            if number % 3:
                assert connection.getresponse().read()
        assert service.process is not None
        service.process.terminate()
        assert comes_true(lambda: not connects(service.port), 3)
        requests = [("GET", "/sesiones/self", None, header), ("POST", "/sesiones", SESSION, FORM)]
        requests.append(("GET", "/sesiones/verificar/", None, header))
        for number, connection in enumerate(connections):
            connection.request(*requests[number // 3])
            response = connection.getresponse()
            assert response.status in (200, 201)
            assert response.getheader("connection") == "close"
            assert response.read() or "verificar" in requests[number // 3][1]
        begun = time.monotonic()
        assert service.process.wait(timeout=10) == 0
        assert time.monotonic() - begun < 1  # nobody else is waited for


CHECK = b"GET /sesiones/self HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def in_process(
    http: type[asyncio.Protocol],
) -> AsyncIterator[tuple[_Server, socket.socket]]:
    """A server in this event loop, and its listening socket."""
    config = uvicorn.Config(create_app(Settings()), http=http, log_config=None)
    config.load()
    server = _Server(config)
    server.lifespan = config.lifespan_class(config)
    with listen(Settings(port=0)) as ((listener,), _):
        await server.startup([listener])
        yield server, listener


@pytest.mark.anyio
@pytest.mark.parametrize("http", [FastCheckProtocol, HttpProtocol])
async def test_a_connection_that_was_not_accepted_yet_is_served(
    http: type[asyncio.Protocol],
) -> None:
    async with in_process(http) as (server, listener):
        with ExitStack() as stack:
            address = listener.getsockname()
            # The event loop has no turn in which it could see them.
            waiting = [stack.enter_context(socket.create_connection(address)) for _ in range(40)]
            for connection in waiting:
                connection.sendall(CHECK)
            reset = waiting.pop(20)
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            reset.close()
            await server.shutdown([listener])
            for connection in waiting:
                assert received(connection).startswith(b"HTTP/1.1 401 ")


@pytest.mark.anyio
@pytest.mark.parametrize("http", [FastCheckProtocol, HttpProtocol])
async def test_a_loop_that_is_late_closes_on_no_request(http: type[asyncio.Protocol]) -> None:
    """Timers come before what was sent: the connection looks idle, and is not."""
    async with in_process(http) as (server, listener):
        mine, its = socket.socketpair()
        with mine, its, socket.create_connection(listener.getsockname()) as connection:

            def hold_up() -> None:
                loop.remove_reader(its)
                connection.sendall(CHECK)
                time.sleep(DRAIN_SECONDS)

            loop = asyncio.get_running_loop()
            loop.add_reader(its, hold_up)
            await asyncio.sleep(0.1)
            stopping = asyncio.create_task(server.shutdown([listener]))
            await asyncio.sleep(0.2)
            mine.send(b"x")
            await stopping
            answer = received(connection)
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close\r\n" in answer


def test_a_worker_that_ends_while_it_is_asked_is_replaced_at_once(
    redis_server: RedisServer,
) -> None:
    with Service("--workers", "2", SESIONES_REDIS_URL=redis_server.url) as service:
        assert comes_true(lambda: service.log.count("startup complete") == 2, 10)
        pid = int(re.findall(r"Started server process \[(\d+)\]", service.log)[0])
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.8)  # until the parent asks whether it lives
        os.kill(pid, signal.SIGKILL)
        # uvicorn would wait for an answer for 5 s.
        assert comes_true(lambda: service.log.count("startup complete") == 3, 3.5)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_stops_accepting_while_it_finishes(slow_redis: RedisServer, workers: str) -> None:
    """A connection that nobody will ever serve must be refused: whoever balances the load then
    tries elsewhere, instead of waiting."""
    variables = {"SESIONES_REDIS_URL": slow_redis.url, "SESIONES_REDIS_TIMEOUT": "8"}
    with Service("--workers", workers, **variables) as service:
        token = new_session(service)
        with hung(slow_redis), in_flight(service, token):
            assert service.process is not None
            service.process.terminate()
            assert comes_true(lambda: not connects(service.port), 3)
            assert service.process.poll() is None
        assert service.process.wait(timeout=10) == 0


def test_a_half_sent_request_does_not_keep_it(redis_server: RedisServer) -> None:
    with ExitStack() as stack:
        services = [
            stack.enter_context(Service("--workers", workers, SESIONES_REDIS_URL=redis_server.url))
            for workers in ("1", "2")
        ]
        connections = []
        for service in services:
            head, body = (
                stack.enter_context(service.connect()),
                stack.enter_context(service.connect()),
            )
            head.sendall(b"GET /sesiones/self HT")
            body.sendall(
                b"POST /sesiones HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n"
                b"Content-Type: application/json\r\n\r\n{"
            )
            connections.append((head, body))
        time.sleep(0.3)
        begun = time.monotonic()
        for service in services:
            assert service.process is not None
            service.process.terminate()
        for service, (head, body) in zip(services, connections, strict=True):
            for connection in head, body:
                answer = received(connection)
                assert answer == b"" or answer.startswith(b"HTTP/1.1 408")
            assert service.process is not None
            assert service.process.wait(timeout=10) == 0
            assert "Traceback" not in service.log
        assert time.monotonic() - begun < 9


def received(connection: socket.socket) -> bytes:
    """What still comes, up to the end."""
    data = bytearray()
    with suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            data += chunk
    return bytes(data)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_ctrl_c_waits_for_nothing(slow_redis: RedisServer, workers: str) -> None:
    variables = {"SESIONES_REDIS_URL": slow_redis.url, "SESIONES_REDIS_TIMEOUT": "8"}
    with Service("--workers", workers, **variables) as service:
        token = new_session(service)
        assert service.process is not None
        assert comes_true(lambda: service.log.count("startup complete") == int(workers), 5)
        # A terminal sends it to the whole group.
        group = [service.process.pid, *children(service.process.pid)]
        with hung(slow_redis), in_flight(service, token):
            begun = time.monotonic()
            for _ in range(2):
                for pid in group:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGINT)
                time.sleep(0.3)
            assert service.process.wait(timeout=10) == 0
            assert time.monotonic() - begun < 4
        assert comes_true(lambda: not any(map(is_running, group)), 3)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_just_after_the_start_is_not_lost(redis_server: RedisServer, workers: str) -> None:
    for delay in 0.0, 0.1:
        flags = ("--port", "0", "--workers", workers)
        with running(*flags, SESIONES_REDIS_URL=redis_server.url) as (process, line):
            assert "listening on" in line
            time.sleep(delay)
            pids = children(process.pid)
            process.terminate()
            assert process.wait(timeout=4) == 0
            assert comes_true(lambda pids=pids: not any(map(is_running, pids)), 3)  # type: ignore[misc]


def test_it_stops_with_hundreds_of_idle_connections(redis_server: RedisServer) -> None:
    with Service(SESIONES_REDIS_URL=redis_server.url) as service, ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(service.connect())
        begun = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - begun < 3


def test_a_client_that_keeps_asking_does_not_keep_it(redis_server: RedisServer) -> None:
    with Service(SESIONES_REDIS_URL=redis_server.url) as service:
        ended = threading.Event()

        def ask() -> None:
            connection = kept_alive(service)
            with suppress(OSError, http.client.HTTPException):
                while not ended.is_set():
                    connection.request("GET", "/sesiones/self")
                    connection.getresponse().read()
            connection.close()

        asker = threading.Thread(target=ask)
        asker.start()
        time.sleep(0.2)
        begun = time.monotonic()
        try:
            assert service.stop() == 0
        finally:
            ended.set()
            asker.join()
        assert time.monotonic() - begun < 3
