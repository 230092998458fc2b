"""No token is ever in a log; where one is named, its fingerprint is."""

import fcntl
import gc
import hashlib
import http.client
import io
import logging
import os
import pty
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import quote

import orjson
import pytest
from redis import Redis

from sesiones import logs, tokens
from tests.harness.records import write_record
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, comes_true, environment
from tests.harness.stores import KEY

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
SERVICE = {"Authorization": f"Bearer {KEY}"} | JSON
HOST = "Host: sesiones\r\n"


def fingerprint(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:8]


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("x", logging.ERROR, "file.py", 1, message, args, info)


# The formatter


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "session {} is gone",
        "GET /sesiones/verificar/{}?x",
        "x{}",
        "_{}-",
        "{}AAAA",
        '{{"Token_Sesion":"{}"}}',
        "first\n{}\nlast",
        "b'{}\\n'",
    ],
)
def test_a_token_becomes_its_fingerprint(text: str) -> None:
    token = tokens.make(7)
    shown = f"ses_#{fingerprint(token)}"
    expected = text.format(token).replace(token, shown)
    for entry in record(text.format(token)), record(text.replace("{}", "%s"), token):
        formatted = logs.TextFormatter().format(entry)
        message = orjson.loads(logs.JsonFormatter().format(entry))["message"]
        for line in formatted, message:
            assert token[6:] not in line
        if "{{" not in text:
            assert formatted == expected.replace("\n", "\\n")
            assert message == expected


def test_every_token_of_a_record() -> None:
    first, second = tokens.make(7), tokens.make(8)
    formatted = logs.TextFormatter().format(record("%s%s %s", first, second, first))
    shown = [f"ses_#{fingerprint(token)}" for token in (first, second)]
    assert formatted == f"{shown[0]}{shown[1]} {shown[0]}"


def test_tokens_in_a_traceback() -> None:
    token = tokens.make(7)
    try:
        try:
            raise KeyError(token)
        except KeyError as error:
            raise ValueError(f"no session {token}") from error
    except ValueError as error:
        entry = record("failed", error=error)
    # Twice: logging keeps a formatted traceback for the next handler.
    for formatter in logs.TextFormatter(), logs.TextFormatter(), logs.JsonFormatter():
        formatted = formatter.format(entry)
        assert "Traceback" in formatted
        assert token[6:] not in formatted
        assert formatted.count(f"ses_#{fingerprint(token)}") == 2


def test_what_only_looks_like_a_token_stays() -> None:
    for text in "ses_", "ses_#abc", f"ses_{'A' * 44}", f"SES_{'A' * 45}":
        assert logs.TextFormatter().format(record(text)) == text


FORGED = "x\n2026-01-01 00:00:00,000 INFO sesiones: forged\r\x1b[2K\x00\u2028\x85\ud800y"


@pytest.mark.parametrize("formatter", [logs.TextFormatter(), logs.JsonFormatter()])
def test_nothing_breaks_a_line(formatter: logging.Formatter) -> None:
    for entry in record(FORGED), record("%s", FORGED), record("%r", FORGED):
        line = formatter.format(entry)
        assert line.isprintable()
        assert line.encode()
    lines = formatter.format(record("failed", error=ValueError(FORGED))).split("\n")
    assert lines[0].startswith(("failed", "{"))
    for line in lines[1:]:
        assert line.startswith("    ")
        assert line.isprintable()


def test_an_object_says_what_the_record_does() -> None:
    entry = record("made %d", 7)
    vars(entry).update(ID_Sesion=7, seconds=0.5, reason=None, path=FORGED)
    members = orjson.loads(logs.JsonFormatter().format(entry))
    time = members.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", time)
    assert members.pop("path").startswith("x\n2026")
    assert members == {
        "level": "ERROR",
        "logger": "x",
        "message": "made 7",
        "ID_Sesion": 7,
        "seconds": 0.5,
        "reason": None,
    }


# What reads standard error


def few(name: str) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": name})


@contextmanager
def handler_on(descriptor: int, backlog_max_bytes: int = 4096) -> Iterator[logs.StderrHandler]:
    """One whose stream is the descriptor, which it then closes."""
    stream = open(descriptor, "w", encoding="utf-8")  # noqa: SIM115
    handler = logs.StderrHandler(stream, backlog_max_bytes)
    try:
        yield handler
    finally:
        handler.flush()
        handler.close()
        with suppress(OSError):
            stream.close()


def pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    return reading, writing


def stream_pair() -> tuple[int, int]:
    reading, writing = socket.socketpair()
    return reading.detach(), writing.detach()


def terminal() -> tuple[int, int]:
    return pty.openpty()


def reader(descriptor: int) -> Generator[str, None, None]:
    """Its lines, as they come."""
    with open(descriptor, encoding="utf-8") as stream:
        for line in stream:
            yield line.removesuffix("\n")


@pytest.mark.parametrize("make", [pipe, stream_pair, terminal])
def test_a_reader_that_does_not_read_never_holds_up_what_logs(
    make: Callable[[], tuple[int, int]],
) -> None:
    reading, writing = make()
    with handler_on(writing) as handler:
        begun = time.monotonic()
        for number in range(20_000):
            handler.handle(few(f"line {number} {'x' * 50}"))
        assert time.monotonic() - begun < 10
        begun = time.monotonic()
        handler.flush()
        assert time.monotonic() - begun < 2 * logs.FLUSH_SECONDS
        lines = reader(reading)
        # Each line is whole and in its place, or among those that are said to be missing there. (A
        # terminal's buffer may take some more after it was full.)
        number = dropped = 0
        while number < 20_000:
            line = next(lines)
            if match := re.match(r"(\d+) log lines were dropped", line):
                number += int(match[1])
                dropped += int(match[1])
            else:
                assert line == f"line {number} {'x' * 50}"
                number += 1
        assert number == 20_000
        assert dropped > 0
        # It goes on as before.
        handler.handle(few("after"))
        assert next(lines) == "after"
    lines.close()


def test_what_was_dropped_is_told_where_it_is_missing() -> None:
    reading, writing = pipe()
    with handler_on(writing) as handler:
        for number in range(300):
            handler.handle(few(f"{number} {'x' * 50}"))
        lines = reader(reading)
        shown = [next(lines) for _ in range(60)]  # room for another one
        handler.handle(few("later"))
        while shown[-1] != "later":
            shown.append(next(lines))
        assert re.match(r"\d+ log lines were dropped", shown[-2])
        assert all(line[0].isdigit() and "x" in line for line in shown[:-2])
    lines.close()


def test_a_line_longer_than_the_pipe_arrives_whole() -> None:
    reading, writing = pipe()
    with handler_on(writing) as handler:
        texts = [letter * 100_000 for letter in "abc"]
        for text in texts:
            handler.handle(few(text))
        lines = reader(reading)
        assert next(lines) == texts[0]  # beside which the backlog had no room
        assert next(lines).startswith("2 log lines were dropped")
    lines.close()


def test_the_pipe_itself_stays_blocking() -> None:
    """It is shared with other processes, the shell among them."""
    reading, writing = pipe()
    with handler_on(writing) as handler:
        handler.handle(few("x"))
        assert os.get_blocking(writing)
    os.close(reading)


def test_a_line_is_written_at_once_where_that_does_not_wait(tmp_path: Path) -> None:
    reading, writing = pipe()
    path = tmp_path / "log"
    for descriptor in writing, os.open(path, os.O_CREAT | os.O_WRONLY):
        with handler_on(descriptor) as handler:
            threads = threading.active_count()
            handler.handle(few("x"))
            assert threading.active_count() == threads
            assert (path.read_text() if descriptor != writing else os.read(reading, 9)) != ""
    os.close(reading)


def test_a_full_disk_loses_nothing_that_the_backlog_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "RETRY_SECONDS", 0.02)
    path = tmp_path / "log"
    # A limit of this process's files: the nearest to a full disk that needs no mount.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with handler_on(os.open(path, os.O_CREAT | os.O_WRONLY)) as handler:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
            for number in range(50):
                handler.handle(few(f"line {number}"))
            begun = time.monotonic()
            handler.flush()
            assert time.monotonic() - begun < 2 * logs.FLUSH_SECONDS
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            lines = [f"line {number}" for number in range(50)]
            assert comes_true(lambda: path.read_text().splitlines() == lines, 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_reader_that_is_gone_harms_nothing() -> None:
    reading, writing = pipe()
    os.close(reading)
    with handler_on(writing) as handler:
        for _ in range(10_000):
            handler.handle(few("x" * 50))
        time.sleep(0.05)
        begun = time.monotonic()
        handler.flush()
        assert time.monotonic() - begun < 0.1  # nothing to wait for


def test_without_standard_error_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    handler = logs.StderrHandler()
    handler.handle(few("x"))
    handler.close()


def test_a_stream_without_a_descriptor_is_written_to() -> None:
    stream = io.StringIO()
    handler = logs.StderrHandler(stream)
    handler.handle(few("x"))
    handler.close()
    assert stream.getvalue() == "x\n"


def test_a_record_that_cannot_be_formatted_is_one_line() -> None:
    stream = io.StringIO()
    handler = logs.StderrHandler(stream)
    handler.handle(logging.LogRecord("x", logging.ERROR, "file.py", 1, "%d", ("y",), None))
    handler.close()
    assert stream.getvalue() == "a record of x has no text: TypeError\n"


def test_records_of_the_garbage_collector_harm_nothing() -> None:
    reading, writing = pipe()
    before = gc.get_threshold()
    nested: list[str] = []
    with handler_on(writing) as handler:

        def collecting(phase: str, _: object) -> None:
            if phase == "stop" and not nested:
                nested.append("x")
                handler.handle(few("nested"))
                nested.clear()

        def log() -> None:
            for number in range(500):
                handler.handle(few(f"{number} {'x' * 50}"))

        thread = threading.Thread(target=log, daemon=True)
        gc.callbacks.append(collecting)
        gc.set_threshold(
            1, 1_000_000, 1_000_000
        )  # young objects alone: the suite has many old ones
        try:
            thread.start()
            thread.join(10)
        finally:
            gc.set_threshold(*before)
            gc.callbacks.remove(collecting)
        assert not thread.is_alive()
        lines = reader(reading)
        assert next(lines)
    lines.close()


def test_no_line_is_in_the_middle_of_another_where_no_thread_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, writing = pipe()
    with handler_on(writing, 100_000) as handler:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError))
            handler.handle(few("a" * 6000))
        os.set_blocking(reading, False)
        shown = os.read(reading, 65536)
        os.set_blocking(reading, True)
        assert set(shown) == {ord("a")}
        handler.handle(few("b"))
        lines = reader(reading)
        assert shown.decode() + next(lines) == "a" * 6000
        assert next(lines) == "b"
    lines.close()


@pytest.mark.parametrize("what", ["warning", "unraisable"])
def test_what_python_says_is_a_log_line(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAYINGS[what]], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0
    records = [orjson.loads(line) for line in done.stderr.splitlines()]
    assert [record["level"] for record in records] == ["WARNING" if what == "warning" else "ERROR"]
    assert "oddity" in done.stderr


SAYINGS = {
    "warning": """
from sesiones import logs
import warnings
logs.set_up("json")
warnings.warn("oddity")
""",
    "unraisable": """
from sesiones import logs
class Odd:
    def __del__(self):
        raise ValueError("oddity")
logs.set_up("json")
Odd()
""",
}


def test_supervisor_whose_log_is_not_read_replaces_workers_and_their_tracker(
    redis_server: RedisServer,
) -> None:
    """Where the resource tracker of multiprocessing has died, Python warns."""
    reading, writing = pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "sesiones", "serve", "--port", "0", "--workers", "2"],
        env=environment() | {"SESIONES_REDIS_URL": redis_server.url},
        stderr=writing,
    )
    lines = reader(reading)
    with process:
        try:
            match = next(filter(None, (re.search(r"listening on .*, (\d+)\)", x) for x in lines)))
            port = int(match[1])  # and nothing more is read
            assert comes_true(lambda: serves(port), 10)
            os.set_blocking(writing, False)
            with suppress(BlockingIOError):
                while os.write(writing, b"x"):
                    pass
            os.set_blocking(writing, True)
            before = children(process.pid)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            assert comes_true(lambda: len(children(process.pid) - before) == 3, 10)
            assert comes_true(lambda: serves(port), 10)
            process.terminate()
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()
            os.close(writing)
            lines.close()


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_whose_log_is_not_read_serves_and_stops(
    redis_server: RedisServer, workers: str
) -> None:
    reading, writing = pipe()
    variables = {"SESIONES_REDIS_URL": redis_server.url, "SESIONES_ACCESS_LOG": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "sesiones", "serve", "--port", "0", "--workers", workers],
        env=environment() | variables,
        stderr=writing,
    )
    os.close(writing)
    lines = reader(reading)
    with process:
        try:
            match = next(filter(None, (re.search(r"listening on .*, (\d+)\)", x) for x in lines)))
            port = int(match[1])  # and nothing more is read
            assert comes_true(lambda: serves(port), 10)
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                for _ in range(800):
                    connection.request("GET", f"/nada/{'x' * 8000}")
                    assert connection.getresponse().read()
            assert serves(port)
            begun = time.monotonic()
            process.terminate()
            assert process.wait(timeout=10) == 0
            assert time.monotonic() - begun < 4
        finally:
            process.kill()
            lines.close()


def serves(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().status == 200
        except OSError:
            return False


# The service


def test_the_life_of_a_session(redis_server: RedisServer) -> None:
    with Service(
        SESIONES_REDIS_URL=redis_server.url,
        SESIONES_LOG_FORMAT="json",
        SESIONES_MAX_PER_USER="2",
        SESIONES_REDIS_TIMEOUT="5",
    ) as service:
        made = [
            service.request("POST", "/sesiones", FORM, "ID_Usuario=48213&Dispositivo=d").json()
            for _ in range(4)
        ]
        by_token = {sesion["Token_Sesion"]: sesion for sesion in made}
        live = [
            token
            for token in by_token
            if service.request("GET", "/sesiones/self", {"x-auth-token": token}).status == 200
        ]
        assert len(live) == 2
        for path, ended in ("logout", live[0]), ("logoutAll", live[1]):
            caller = {"x-auth-token": live[1]}
            path = f"/sesiones/{path}?Token_Sesion={ended}"
            assert service.request("DELETE", path, caller).status == 200
        lines = [orjson.loads(line) for line in service.log.splitlines()[1:]]
    events = [line for line in lines if "event" in line]
    for line in events:
        assert (line["level"], line["logger"]) == ("INFO", "sesiones.store")
        assert line["ID_Usuario"] == 48213
        assert line["message"].startswith(f"{line['event']} session {line['ID_Sesion']} of user")
    names = {s["ID_Sesion"]: f"ses_#{fingerprint(s['Token_Sesion'])}" for s in made}
    assert all(line["token"] == names[line["ID_Sesion"]] for line in events)
    created = [line["ID_Sesion"] for line in events if line["event"] == "created"]
    assert created == [sesion["ID_Sesion"] for sesion in made]
    ended = [(line["ID_Sesion"], line["reason"]) for line in events if line["event"] == "ended"]
    dead = [s["ID_Sesion"] for token, s in by_token.items() if token not in live]
    assert sorted(ended[:2]) == [(id_, "limit") for id_ in sorted(dead)]
    assert ended[2:] == [
        (by_token[live[0]]["ID_Sesion"], "logout"),
        (by_token[live[1]]["ID_Sesion"], "logout_all"),
    ]


def test_what_is_slow(redis_server: RedisServer, redis: "Redis") -> None:
    with Service(SESIONES_REDIS_URL=redis_server.url, SESIONES_REDIS_TIMEOUT="5") as service:
        body = "ID_Usuario=7&Dispositivo=d"
        token = service.request("POST", "/sesiones", FORM, body).json()["Token_Sesion"]
        redis.client_pause(200)
        service.request("GET", "/sesiones/self", {"x-auth-token": token})
        time.sleep(1)  # one a second is logged
        redis.client_pause(200)
        service.request("POST", "/sesiones", FORM, body)
        slow = re.findall(
            r"WARNING sesiones\.store: slow: (\w+) took 0\.[1-9]\d\d s\n", service.log
        )
        assert slow == ["check", "create"]


@pytest.fixture(scope="module", params=[1, 2])
def logged(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Service]:
    with Service(
        *("--access-log", "1", "--workers", str(request.param)),
        SESIONES_REDIS_URL=redis_server.url,
        SESIONES_SERVICE_KEY=KEY,
        SESIONES_REDIS_TIMEOUT="5",
    ) as service:
        yield service


def create(service: Service) -> str:
    body = '{"ID_Usuario": 7, "Dispositivo": "d"}'
    token: str = service.request("POST", "/sesiones", SERVICE, body).json()["Token_Sesion"]
    return token


def key(token: str) -> str:
    return f"sesiones:{{{tokens.bucket(token)}}}:h:{tokens.digest(token)}"


def send_everywhere(service: Service, token: str) -> None:
    """The token in every place of a request, good and bad."""
    request = service.request
    hexadecimal = "".join(f"%{byte:02X}" for byte in token.encode())
    for headers in (
        {"x-auth-token": token},
        {"Authorization": f"Bearer {token}"},
        {"Authorization": f"Basic {token}"},
        {"x-auth-token": token, "Authorization": f"Bearer {token}"},
        {"User-Agent": token, "Referer": f"http://x/{token}", "Cookie": f"a={token}"},
        {"Host": token, "Content-Type": token, "Upgrade": token, "Connection": "upgrade"},
        {"Expect": token, "X-Forwarded-For": token, "X-Request-ID": token},
    ):
        for path in "/sesiones/self", "/sesiones/verificar", f"/sesiones/verificar/{token}", "/":
            request("GET", path, headers)
            request("POST", path, headers, token)
    for path in (
        f"/{token}",
        f"/sesiones/{token}",
        f"/sesiones/self/{token}",
        f"/sesiones/verificar/a{token}",
        f"/sesiones/verificar/{token}{token}",
        f"/sesiones/verificar/{token}/x",
        f"/sesiones/verificar/{hexadecimal}",
        f"/sesiones/verificar/{token.replace('_', '%5F')}",
        f"/sesiones/verificar/%0A{token}%0A",
        f"/sesiones/verificar%3FToken_Sesion={token}",
    ):
        request("GET", path)
        request("GET", f"{path}?Token_Sesion={token}&{token}", {"x-auth-token": token})
        request("GET", f"{path}?{hexadecimal}#{token}", {"x-auth-token": token})
    for path in "/sesiones", "/sesiones/logout", "/sesiones/logoutAll":
        for method in "POST", "PUT", "DELETE":
            for kind, body in (
                (JSON, f'{{"Token_Sesion": "{token}"'),
                (JSON, f'{{"Token_Sesion": ["{token}"]}}'),
                (JSON, f'{{"{token}": 1, "{token}": 2}}'),
                (JSON, f'"{token}"'),
                (FORM, f"Token_Sesion={token}&Token_Sesion={token}"),
                (FORM, f"{quote(token)}=%FF"),
                ({"Content-Type": f"text/{token}"}, token),
            ):
                request(method, path, SERVICE | kind, body)
                request(method, path, {"x-auth-token": token} | kind, body)
                caller = {"x-auth-token": token}
                request(method, f"{path}?Token_Sesion={token}&{token}=%FF", caller)
    for raw in (
        token,
        f"{token} / HTTP/1.1\r\n\r\n",
        f"GET {token} HTTP/1.1\r\n\r\n",
        f"GET /{token} HTTP/{token}\r\n\r\n",
        f"GET / HTTP/1.1\r\n{token}\r\n\r\n",
        f"GET /{token} HTTP/1.1\r\n{HOST}x-auth-token: {token}\x00\r\n\r\n",
        f"GET /{token} HTTP/1.1\r\n{HOST}{HOST}\r\n",
        f"GET /{token} HTTP/1.1\r\n{HOST}" + f"x: {token}\r\n" * 101 + "\r\n",
        f"GET /{token} HTTP/1.1\r\n{HOST}x: {token * 400}\r\n\r\n",
        f"GET /{token} HTTP/1.0\r\n\r\n",
        f"GET http://{token}/{token}?{token} HTTP/1.1\r\n{HOST}\r\n",
        f"CONNECT {token}:1 HTTP/1.1\r\n{HOST}\r\n",
        f"POST /sesiones HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n{token}",
    ):
        with service.connect() as connection:
            connection.sendall(raw.encode())
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass


def test_no_token_in_the_log(logged: Service, redis: "Redis") -> None:
    live, ended, unknown = create(logged), create(logged), tokens.make(7)
    before = len(logged.log)
    for token in live, ended, unknown:
        send_everywhere(logged, token)
    logged.request("DELETE", f"/sesiones/logout?Token_Sesion={ended}", {"x-auth-token": live})
    # A broken index makes a slide, a PUT and a logout fail in Redis.
    sesion = logged.request("GET", "/sesiones/self", {"x-auth-token": live}).json()
    index = f"sesiones:{{{tokens.bucket(live)}}}:u:7"
    redis.delete(index)
    redis.set(index, "x")
    write_record(redis, key(live), actividad=sesion["Ultima_Actividad"] - 100)
    body = str(sesion | {"Fecha_Expiracion": sesion["Fecha_Inicio"] + 600}).replace("'", '"')
    for method, path, headers in (
        ("GET", "/sesiones/self", {"x-auth-token": live}),
        ("PUT", "/sesiones", SERVICE),
        ("POST", "/sesiones", SERVICE),
        ("DELETE", "/sesiones/logoutAll", {"x-auth-token": live} | JSON),
    ):
        logged.request(method, path, headers, body)
    log = logged.log
    assert "Redis is unavailable" in log
    assert "Traceback" not in log
    for token in live, ended, unknown:
        assert token[6:] not in log
        # A request line names it by its fingerprint.
        assert re.search(
            rf'"GET /sesiones/verificar/ses_#{fingerprint(token)} HTTP/1\.1" (200|401)',
            log[before:],
        )
    assert KEY not in log
    assert "Token_Sesion=" not in re.sub(r"verificar%3FToken_Sesion%3D", "", log)


def test_a_bad_record_is_named_by_its_fingerprint(logged: Service, redis: "Redis") -> None:
    token = create(logged)
    before = len(logged.log)
    redis.hset(key(token), "1", "x")
    reply = logged.request("GET", "/sesiones/self", {"x-auth-token": token})
    assert reply.status == 401
    (line,) = [line for line in logged.log[before:].splitlines() if " ERROR " in line]
    assert f"ERROR sesiones.store: bad record of session {fingerprint(token)}: " in line
    assert token[6:] not in logged.log


def test_an_access_line_has_no_query(logged: Service) -> None:
    logged.request("GET", "/sesiones/self?a=secreto&b#c", {"x-auth-token": "x"})
    assert '"GET /sesiones/self HTTP/1.1" 401' in logged.log
    assert "secreto" not in logged.log


def test_without_an_access_log_a_request_leaves_nothing(service: Service, redis: "Redis") -> None:
    token = create(service)
    before = service.log
    send_everywhere(service, token)
    assert service.log == before
