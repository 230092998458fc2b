"""Where the service listens: addresses, ports and unix sockets."""

import fcntl
import http.client
import os
import re
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from sesiones.http import sockets
from sesiones.http.sockets import ListenError, listen
from sesiones.settings import Settings, SettingsError
from tests.harness.faults import hung
from tests.harness.ports import free_port
from tests.harness.processes import connects
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, comes_true
from tests.harness.serving import (
    FORM,
    SESSION,
    UnixConnection,
    answers,
    listens,
    refused_serve,
    running,
)
from tests.harness.stores import KEY


def test_default_is_to_listen_on_loopback_alone(service: Service) -> None:
    assert service.request("GET", "/sesiones/self").status == 401
    # All of 127.0.0.0/8 is this machine: a server on 0.0.0.0 would answer here as well.
    assert not connects(service.port, "127.0.0.2")


def test_listening_beyond_loopback_without_a_service_key_is_exit_2() -> None:
    code, line = refused_serve("--host", "0.0.0.0", "--port", "0")
    assert code == 2
    assert "SESIONES_SERVICE_KEY" in line


@pytest.mark.parametrize(
    "host", ["0", "::", "::0", "0x0", "::ffff:0.0.0.0", "192.0.2.1", "2001:db8::1"]
)
def test_no_spelling_of_a_host_is_beyond_loopback_without_a_key(host: str) -> None:
    with (
        pytest.raises(SettingsError, match="SESIONES_SERVICE_KEY"),
        listen(Settings(host=host, port=0)),
    ):
        pass


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
def test_all_addresses_of_a_name_are_listened_on_at_one_port(
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


def test_port_0_is_free_on_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_port_taken_on_one_address_is_taken(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to(*addresses))
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=str(port)), listen(Settings(host="x", port=port)):
            pass
        monkeypatch.undo()
        assert not connects(port, "127.0.0.1")  # nothing is left open


def test_address_that_the_machine_does_not_have_is_left_out(
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


@pytest.mark.parametrize(
    "addresses", [("192.0.2.1",), ("127.0.0.1", "192.0.2.1"), ("::1", "127.0.0.1", "::")]
)
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


def test_service_key_allows_any_address(redis_server: RedisServer) -> None:
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
def test_unknown_host_is_one_line(host: str) -> None:
    with (
        pytest.raises((ListenError, SettingsError), match=r"\A[^\n]+\Z"),
        listen(Settings(host=host, port=0)),
    ):
        pass


def test_taken_port_is_one_line_and_exit_1(redis_server: RedisServer) -> None:
    with Service(SESIONES_REDIS_URL=redis_server.url) as service:
        code, line = refused_serve("--port", str(service.port))
        assert code == 1
        assert str(service.port) in line
        assert service.request("GET", "/sesiones/self").status == 401


def test_unix_socket_is_served_with_mode_0660_and_removed(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    path = tmp_path / "sesiones.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))  # a stale file: no server listens on it
    flags = ("--uds", str(path), "--workers", "2")
    with running(*flags, SESIONES_REDIS_URL=redis_server.url) as (process, _):
        assert comes_true(lambda: answers(path), 10)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        # Every process that can open the socket may make sessions: the file's mode decides.
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


def test_servers_that_start_at_once_do_not_take_the_same_unix_socket(tmp_path: Path) -> None:
    settings = Settings(uds=str(tmp_path / "sesiones.sock"))
    with listen(settings):
        # uvicorn has not begun to serve on the first, but the second must not think it stale.
        with pytest.raises(ListenError), listen(settings):
            pass
        assert os.path.exists(settings.uds or "")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_restart_with_an_overlap_keeps_the_new_unix_socket(
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
                slow_redis.process.send_signal(signal.SIGCONT)
                assert pending.getresponse().status == 201
                assert old.wait(timeout=10) == 0
                assert answers(path)
                new.terminate()
                assert new.wait(timeout=10) == 0
                assert not path.exists()


def test_unix_socket_of_another_server_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "sesiones.sock"
    settings = Settings(uds=str(path))
    for _ in range(20):  # file systems use inode numbers again
        with ExitStack() as stack:
            with listen(settings) as ((listener,), _):
                listener.close()  # as a server does that finishes its requests
                stack.enter_context(listen(settings))
            assert listens(path)
        assert not path.exists()


def test_unix_socket_whose_mode_was_changed_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "sesiones.sock"
    with listen(Settings(uds=str(path))):
        path.chmod(0o666)
    assert not path.exists()


def test_of_servers_that_start_at_once_on_a_stale_unix_socket_one_listens(
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


def test_locked_folder_delays_a_start_no_longer_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "LOCK_WAIT_SECONDS", 0.1)
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    begun = time.monotonic()
    with listen(Settings(uds=str(tmp_path / "sesiones.sock"))):
        assert 0.1 <= time.monotonic() - begun < 3
    os.close(folder)


def test_unix_socket_of_a_server_that_hangs_is_not_removed(tmp_path: Path) -> None:
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


def test_file_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    code, line = refused_serve("--uds", str(path))
    assert (code, path.read_text()) == (1, "data")
    assert str(path) in line


def test_impossible_unix_socket_is_one_line(tmp_path: Path) -> None:
    assert refused_serve("--uds", str(tmp_path / "absent" / "s"))[0] == 1
    assert refused_serve("--uds", "/tmp/" + "x" * 200)[0] == 1


def test_service_whose_unix_socket_was_removed_stops(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    path = tmp_path / "sesiones.sock"
    with running("--uds", str(path), SESIONES_REDIS_URL=redis_server.url) as (process, _):
        assert comes_true(lambda: answers(path), 10)
        path.unlink()
        process.terminate()
        assert process.wait(timeout=10) == 0
