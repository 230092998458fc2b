"""What the log says at start and each minute: version, settings, Redis, and evictions."""

import logging
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

import sesiones
from sesiones.http import watch
from sesiones.http.watch import Watch
from sesiones.settings import Settings
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, comes_true, environment
from tests.harness.stores import KEY, replica_of

PASSWORD = "hunter2"


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    """A server whose settings and users the tests here change."""
    with RedisServer(port=str(free_port())) as server:
        yield server


def start_lines(service: Service) -> list[str]:
    return [line for line in service.log.splitlines() if f"sesiones {sesiones.__version__}" in line]


def test_one_line_at_start_of_all_workers_tells_version_redis_and_settings(
    own_redis: RedisServer,
) -> None:
    url = f"redis://127.0.0.1:{own_redis.port}/0"
    flags = "--workers", "2", "--access-log", "1"
    with Service(*flags, SESIONES_REDIS_URL=url, SESIONES_IDLE_SECONDS="60") as service:
        (line,) = start_lines(service)
    assert " INFO " in line
    assert re.search(rf"; {re.escape(url)} answers: (Redis|Valkey) \d+\.\d+\.\d+, master; ", line)
    settings = line.partition("; settings: ")[2].split()
    expected = {"SESIONES_PORT=0", "SESIONES_WORKERS=2", "SESIONES_IDLE_SECONDS=60"}
    assert set(settings) == expected | {"SESIONES_ACCESS_LOG=1"}


def test_no_secret_is_in_the_log_of_a_start(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with own_redis.client() as admin:
        admin.acl_setuser("guest", enabled=True, passwords=[f"+{PASSWORD}"], commands=["+@all"])
    server = f"127.0.0.1:{own_redis.port}"
    for url in (
        f"redis://guest:{PASSWORD}@{server}/0",
        f"redis://{server}/0?username=guest&password={PASSWORD}",
        f"redis://unknown:{PASSWORD}@{server}/0",  # refused
        f"redis+sentinel://guest:{PASSWORD}@{server}/mymaster",
        f"redis+cluster://guest:{PASSWORD}@{server}",
    ):
        caplog.clear()
        settings = Settings(redis_url=url, service_key=(KEY,))
        with caplog.at_level(logging.INFO), Watch(settings):
            assert comes_true(lambda: "; settings: " in caplog.text, 5)
        assert server in caplog.text
        assert "SESIONES_SERVICE_KEY=(hidden)" in caplog.text
        for secret in PASSWORD, "guest", KEY:
            assert secret not in caplog.text


def start_record(url: str, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """The first line of a watch of that Redis."""
    with caplog.at_level(logging.INFO), Watch(Settings(redis_url=url)):
        assert comes_true(lambda: "; settings: " in caplog.text, 5)
    return caplog.records[0]


def test_redis_that_is_away_at_the_start_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    record = start_record(f"redis://127.0.0.1:{free_port()}", caplog)
    assert record.levelno == logging.WARNING
    assert " does not answer: " in record.message
    assert "refused" in record.message


def test_redis_that_hangs_delays_no_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with Service(SESIONES_REDIS_URL=f"redis://127.0.0.1:{silent.getsockname()[1]}") as service:
            assert service.request("GET", "/livez").status == 200
            log = service.log
        listening, answered = log.index("listening on"), log.index(" does not answer: ")
        assert listening < answered
        assert time.monotonic() - begun < 10


@pytest.mark.slow
def test_redis_that_comes_up_later_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with Service(SESIONES_REDIS_URL=f"redis://127.0.0.1:{port}") as service:
        assert " does not answer: " in service.log
        with RedisServer(port=str(port)):
            assert comes_true(lambda: " answers: " in service.log, watch.RETRY_SECONDS + 3)
        assert len(start_lines(service)) == 1


def test_replica_is_a_warning(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    with replica_of(own_redis) as replica:
        record = start_record(replica.url, caplog)
    assert record.levelno == logging.WARNING
    assert ", replica; " in record.message


def test_command_that_the_acl_forbids_is_left_out_and_not_asked_again(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.05)
    with own_redis.client() as admin:
        admin.acl_setuser(
            "least", enabled=True, passwords=[f"+{PASSWORD}"], commands=["-@all", "+role"]
        )
        admin.acl_log_reset()
        url = f"redis://least:{PASSWORD}@127.0.0.1:{own_redis.port}"
        with caplog.at_level(logging.INFO), Watch(Settings(redis_url=url)):
            assert comes_true(lambda: "answers" in caplog.text, 5)
            time.sleep(0.5)
        assert "Redis of unknown version, master" in caplog.text
        assert [entry["count"] for entry in admin.acl_log()] == [1]


def test_another_eviction_policy_is_one_warning_of_all_workers(own_redis: RedisServer) -> None:
    with own_redis.client() as admin:
        admin.config_set("maxmemory-policy", "volatile-ttl")
        try:
            with Service("--workers", "2", SESIONES_REDIS_URL=own_redis.url) as service:
                assert comes_true(lambda: "maxmemory-policy is" in service.log, 5)
                time.sleep(0.5)
                lines = [line for line in service.log.splitlines() if "maxmemory-policy" in line]
        finally:
            admin.config_set("maxmemory-policy", "noeviction")
    (line,) = lines
    assert " WARNING " in line
    assert "maxmemory-policy is volatile-ttl" in line
    assert "silent logout" in line


def test_evictions_are_a_warning_that_is_repeated_each_hour(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.05)
    with (
        own_redis.client() as admin,
        caplog.at_level(logging.INFO),
        Watch(Settings(redis_url=own_redis.url)),
    ):
        assert comes_true(lambda: "answers" in caplog.text, 5)
        time.sleep(0.3)
        assert "WARNING" not in caplog.text
        try:
            admin.config_set("maxmemory-policy", "allkeys-lru")
            assert comes_true(lambda: "maxmemory-policy is allkeys-lru" in caplog.text, 5)
            admin.set("victim", "x" * 100_000)
            admin.config_set("maxmemory", 1)
            assert comes_true(lambda: "keys have been evicted" in caplog.text, 5)
            admin.config_set("maxmemory", 0)
        finally:
            admin.config_set("maxmemory", 0)
            admin.config_set("maxmemory-policy", "noeviction")
        time.sleep(0.3)
        # What has been evicted stays evicted.
        assert "maxmemory-policy" not in caplog.messages[-1]
        assert "keys have been evicted" in caplog.messages[-1]
        count = len(caplog.messages)
        time.sleep(0.3)
        assert len(caplog.messages) == count
        monkeypatch.setattr(watch, "REPEAT_SECONDS", 0.0)
        assert comes_true(lambda: len(caplog.messages) > count, 5)
        admin.config_resetstat()
        time.sleep(0.3)
        count = len(caplog.messages)
        time.sleep(0.3)
        assert len(caplog.messages) == count


def test_server_that_is_no_redis_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        with caplog.at_level(logging.INFO), Watch(Settings(redis_url=url)):
            assert comes_true(lambda: " does not answer: " in caplog.text, 5)
        thread.join()


def test_unknown_setting_is_a_warning_with_the_nearest_name(
    redis_server: RedisServer,
) -> None:
    variables = {
        "SESIONES_REDIS_URL": redis_server.url,
        "SESIONES_IDLE_SECOND": "secreto",
        "SESIONES_ServiceKey_File": "x",
        "SESIONES_\x1b[2J\n": "x",
    }
    with Service("--workers", "2", **variables) as service:
        lines = [line for line in service.log.splitlines() if "is no setting" in line]
        assert "secreto" not in service.log
    assert len(lines) == 3
    assert all(" WARNING " in line for line in lines)
    assert "SESIONES_IDLE_SECOND is no setting" in lines[0]
    assert lines[0].endswith("SESIONES_IDLE_SECONDS")
    assert lines[1].endswith("SESIONES_SERVICE_KEY_FILE")
    assert lines[2].isprintable()


def test_secret_on_the_command_line_is_one_warning_of_all_workers() -> None:
    """Which flags have a secret: tests/test_settings_report.py."""
    secret = f"redis://:{PASSWORD}@127.0.0.1:{free_port()}"
    flags = "--redis-url", secret, f"--service-key={KEY}"
    with Service("--workers", "2", *flags) as service:
        assert re.findall(r"(--\S+) shows a secret", service.log) == [
            "--redis-url",
            "--service-key",
        ]
        assert KEY not in service.log
        assert PASSWORD not in service.log


def test_log_of_a_usual_start_has_no_warning(redis_server: RedisServer) -> None:
    assert not any(name.startswith("SESIONES_") for name in environment())
    with Service(SESIONES_REDIS_URL=redis_server.url) as service:
        assert "WARNING" not in service.log
