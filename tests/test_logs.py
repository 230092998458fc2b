"""The formatters, which mask tokens, and the handler, which never waits for standard error."""

import gc
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import Mock

import orjson
import pytest

from sesiones import logs, tokens
from sesiones.tokens import fingerprint
from tests.harness.pipes import lines_of, narrow_pipe
from tests.harness.service import comes_true


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("x", logging.ERROR, "file.py", 1, message, args, info)


# The formatter


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "session {} is gone", "GET /sesiones/verificar/{}?x", "x{}", "_{}-", "{}AAAA"),
        *('{{"Token_Sesion":"{}"}}', "first\n{}\nlast", "b'{}\\n'"),
    ],
)
def test_token_becomes_its_fingerprint(text: str) -> None:
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


def test_every_token_of_a_record_is_masked() -> None:
    first, second = tokens.make(7), tokens.make(8)
    formatted = logs.TextFormatter().format(record("%s%s %s", first, second, first))
    shown = [f"ses_#{fingerprint(token)}" for token in (first, second)]
    assert formatted == f"{shown[0]}{shown[1]} {shown[0]}"


def test_tokens_in_a_traceback_are_masked() -> None:
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


def test_text_that_is_no_token_stays() -> None:
    for text in "ses_", "ses_#abc", f"ses_{'A' * 44}", f"SES_{'A' * 45}":
        assert logs.TextFormatter().format(record(text)) == text


FORGED = "x\n2026-01-01 00:00:00,000 INFO sesiones: forged\r\x1b[2K\x00\u2028\x85\ud800y"


@pytest.mark.parametrize("formatter", [logs.TextFormatter(), logs.JsonFormatter()])
def test_no_character_breaks_a_line(formatter: logging.Formatter) -> None:
    for entry in record(FORGED), record("%s", FORGED), record("%r", FORGED):
        line = formatter.format(entry)
        assert line.isprintable()
        assert line.encode()
    lines = formatter.format(record("failed", error=ValueError(FORGED))).split("\n")
    assert lines[0].startswith(("failed", "{"))
    for line in lines[1:]:
        assert line.startswith("    ")
        assert line.isprintable()


def test_json_has_the_members_of_the_record() -> None:
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


# The handler


def info(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": text})


@contextmanager
def handler_on(descriptor: int, backlog_max_bytes: int = 4096) -> Iterator[logs.StderrHandler]:
    """A handler on the descriptor, which is closed at the end."""
    stream = open(descriptor, "w", encoding="utf-8")  # noqa: SIM115
    handler = logs.StderrHandler(stream, backlog_max_bytes)
    try:
        yield handler
    finally:
        handler.flush()
        handler.close()
        with suppress(OSError):
            stream.close()


def stream_pair() -> tuple[int, int]:
    reading, writing = socket.socketpair()
    return reading.detach(), writing.detach()


def terminal() -> tuple[int, int]:
    return pty.openpty()


@pytest.mark.parametrize("make", [narrow_pipe, stream_pair, terminal])
def test_stalled_reader_never_holds_up_logging(
    make: Callable[[], tuple[int, int]],
) -> None:
    reading, writing = make()
    with handler_on(writing) as handler:
        begun = time.monotonic()
        for number in range(20_000):
            handler.handle(info(f"line {number} {'x' * 50}"))
        assert time.monotonic() - begun < 10
        begun = time.monotonic()
        handler.flush()
        assert time.monotonic() - begun < 2 * logs.FLUSH_SECONDS
        lines = lines_of(reading)
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
        handler.handle(info("after"))
        assert next(lines) == "after"
    lines.close()


def test_dropped_lines_are_reported_where_they_are_missing() -> None:
    reading, writing = narrow_pipe()
    with handler_on(writing) as handler:
        for number in range(300):
            handler.handle(info(f"{number} {'x' * 50}"))
        lines = lines_of(reading)
        shown = [next(lines) for _ in range(60)]  # room for another one
        handler.handle(info("later"))
        while shown[-1] != "later":
            shown.append(next(lines))
        assert re.match(r"\d+ log lines were dropped", shown[-2])
        assert all(line[0].isdigit() and "x" in line for line in shown[:-2])
    lines.close()


def test_line_longer_than_the_pipe_arrives_whole() -> None:
    reading, writing = narrow_pipe()
    with handler_on(writing) as handler:
        texts = [letter * 100_000 for letter in "abc"]
        for text in texts:
            handler.handle(info(text))
        lines = lines_of(reading)
        assert next(lines) == texts[0]  # beside which the backlog had no room
        assert next(lines).startswith("2 log lines were dropped")
    lines.close()


def test_pipe_itself_stays_blocking() -> None:
    """It is shared with other processes, the shell among them."""
    reading, writing = narrow_pipe()
    with handler_on(writing) as handler:
        handler.handle(info("x"))
        assert os.get_blocking(writing)
    os.close(reading)


def test_line_is_written_without_a_thread_where_that_does_not_wait(tmp_path: Path) -> None:
    reading, writing = narrow_pipe()
    path = tmp_path / "log"
    for descriptor in writing, os.open(path, os.O_CREAT | os.O_WRONLY):
        with handler_on(descriptor) as handler:
            threads = threading.active_count()
            handler.handle(info("x"))
            assert threading.active_count() == threads
            assert (path.read_text() if descriptor != writing else os.read(reading, 9)) != ""
    os.close(reading)


def test_full_disk_loses_no_line_that_the_backlog_can_hold(
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
                handler.handle(info(f"line {number}"))
            begun = time.monotonic()
            handler.flush()
            assert time.monotonic() - begun < 2 * logs.FLUSH_SECONDS
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            lines = [f"line {number}" for number in range(50)]
            assert comes_true(lambda: path.read_text().splitlines() == lines, 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_closed_reader_does_not_delay_the_end() -> None:
    reading, writing = narrow_pipe()
    os.close(reading)
    with handler_on(writing) as handler:
        for _ in range(10_000):
            handler.handle(info("x" * 50))
        time.sleep(0.05)
        begun = time.monotonic()
        handler.flush()
        assert time.monotonic() - begun < 0.1  # nothing to wait for


def test_without_standard_error_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    handler = logs.StderrHandler()
    handler.handle(info("x"))
    handler.close()


def test_stream_without_a_descriptor_is_written_to() -> None:
    stream = io.StringIO()
    handler = logs.StderrHandler(stream)
    handler.handle(info("x"))
    handler.close()
    assert stream.getvalue() == "x\n"


def test_record_that_cannot_be_formatted_is_one_line() -> None:
    stream = io.StringIO()
    handler = logs.StderrHandler(stream)
    handler.handle(logging.LogRecord("x", logging.ERROR, "file.py", 1, "%d", ("y",), None))
    handler.close()
    assert stream.getvalue() == "a record of x has no text: TypeError\n"


def test_logging_during_a_garbage_collection_does_not_deadlock() -> None:
    reading, writing = narrow_pipe()
    before = gc.get_threshold()
    nested: list[str] = []
    with handler_on(writing) as handler:

        def collecting(phase: str, _: object) -> None:
            if phase == "stop" and not nested:
                nested.append("x")
                handler.handle(info("nested"))
                nested.clear()

        def log() -> None:
            for number in range(500):
                handler.handle(info(f"{number} {'x' * 50}"))

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
        lines = lines_of(reading)
        assert next(lines)
    lines.close()


def test_lines_do_not_mix_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, writing = narrow_pipe()
    with handler_on(writing, 100_000) as handler:
        with monkeypatch.context() as patched:
            patched.setattr(logs, "start_new_thread", Mock(side_effect=RuntimeError))
            handler.handle(info("a" * 6000))
        os.set_blocking(reading, False)
        shown = os.read(reading, 65536)
        os.set_blocking(reading, True)
        assert set(shown) == {ord("a")}
        handler.handle(info("b"))
        lines = lines_of(reading)
        assert shown.decode() + next(lines) == "a" * 6000
        assert next(lines) == "b"
    lines.close()


@pytest.mark.parametrize(
    ("program", "level"),
    [
        ("warnings.warn('oddity')", "WARNING"),
        ("type('Odd', (), {'__del__': lambda self: int('oddity')})()", "ERROR"),
    ],
    ids=["warning", "unraisable"],
)
def test_messages_of_python_itself_are_log_lines(program: str, level: str) -> None:
    program = f"from sesiones import logs\nimport warnings\nlogs.set_up('json')\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    assert [orjson.loads(line)["level"] for line in done.stderr.splitlines()] == [level]
    assert "oddity" in done.stderr
