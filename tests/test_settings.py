"""Settings: what each variable and flag accepts. For anything else the service ends with one line,
which repeats no secret."""

import argparse
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesiones.cli import main
from sesiones.settings import Settings, SettingsError, variables

KEY = "k" * 32

GOOD_URLS = """
    redis://h redis://h:6380/1 redis://user:p%40ss@h/0 redis://[::1]:6379
    rediss://h:6380/0?ssl_ca_certs=/ca.pem unix:///run/redis.sock
    redis+sentinel://a:26379,b:26379/mymaster redis+sentinel://:secret@a,[::1]:26379/mymaster/1
    redis+cluster://a:7000,b:7001 redis+cluster://user:secret@a
"""
BAD_URLS = """
    redis 127.0.0.1:6379 http://h redis://h:port redis://h:65536 redis://[::1 redis://h?db=one
    redis://h/notadatabase unix:// redis+sentinel://h:1 redis+sentinel:///mymaster
    redis+sentinel://h/mymaster/one redis+cluster:// redis+cluster://h, redis+cluster://h:65536
    redis+cluster://h/1
    rediss://h?protocol=9 rediss://h?retry=3 rediss://h?ssl_cert_reqs=none
    rediss://h?ssl_cert_reqs=sometimes rediss://h?ssl_check_hostname=no
    rediss://h?maint_notifications_config=1 rediss://h?credential_provider=x
    rediss://h?username=u&password=p&credential_provider=x
    rediss://h?redis_connect_func=x rediss://h?encoding=klingon
    http://:hunter2@h hunter2 redis://:hunter2 redis://:hunter2@h:port redis://:hunter2@[::1
    redis://user:hunter2@h:65536/0 redis://h?db=hunter2 redis://h?password=hunter2&db=x
    redis+sentinel://:hunter2@h redis+cluster://:hunter2@h:x redis+cluster://:hunter2@
    redis://:hunter2/x@h:6379/0 redis://:hunter2#x@h:6379/0 redis://:hunter2?x@h:6379/0
    redis://user:1234/56@h:6379/0 redis://user:1234#56@h:6379/0 redis://user:1234?56@h:6379/0
"""
"""Malformed URLs; options of redis-py that make every request fail, or that the service sets
itself; passwords in bad URLs; and passwords that are not escaped: half of one reads as the port
of a host "user", and the log would show it."""

GOOD: dict[str, list[tuple[str, Any]]] = {
    "host": [("::1", "::1"), ("localhost", "localhost")],
    "port": [("0", 0), ("65535", 65535)],
    "uds": [("/tmp/s.sock", "/tmp/s.sock")],
    "workers": [("1", 1), ("4", 4)],
    "redis_url": [(url, url) for url in GOOD_URLS.split()],
    "idle_seconds": [("1", 1), ("43200", 43200)],
    "max_seconds": [("1800", 1800), ("2147483647", 2147483647)],
    "touch_seconds": [("0", 0), ("60", 60)],
    "max_per_user": [("1", 1), ("10000", 10_000)],
    "at_limit": [("end", "end"), ("refuse", "refuse")],
    "redis_timeout": [("0.25", 0.25), (".5", 0.5), ("2", 2.0)],
    "redis_ca_file": [],  # a good one needs a URL with TLS: redis_client/test_tls.py
    "wait_replicas": [("0", 0), ("2", 2)],
    "cache_seconds": [("0", 0), ("60", 60), ("3600", 3600)],
    "why_seconds": [("0", 0), ("86400", 86400), ("2592000", 2592000)],
    "service_key": [(KEY, (KEY,)), (f"{KEY}, {'~' * 40}", (KEY, "~" * 40))],
    "key_prefix": [("a", "a"), ("A-z_0.9:" * 4, "A-z_0.9:" * 4)],
    "http": [("httptools", "httptools"), ("fast", "fast")],
    "forwarded_allow_ips": [
        ("127.0.0.1", "127.0.0.1"),
        ("*", "*"),
        (" * ", "*"),
        ("10.0.0.0/8, ::1,fd00::/8", "10.0.0.0/8,::1,fd00::/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
    "access_log": [("0", False), ("1", True)],
    "log_level": [("info", "info"), ("debug", "debug")],
    "log_format": [("text", "text"), ("json", "json")],
}

NOT_A_COUNT = ["", " 1", "-1", "+1", "1.0", "1_0", "0x10", "uno", "\u0661", "1\n", "9" * 5000]

BAD: dict[str, list[str]] = {
    "host": [""],
    "port": [*NOT_A_COUNT, "65536"],
    "uds": [""],
    "workers": [*NOT_A_COUNT, "0"],
    "redis_url": ["", *BAD_URLS.split()],
    "idle_seconds": [*NOT_A_COUNT, "0", "2147483648"],
    "max_seconds": [*NOT_A_COUNT, "0"],
    "touch_seconds": [*NOT_A_COUNT, "2147483648"],
    "max_per_user": [*NOT_A_COUNT, "0", "10001", "1000000"],
    "at_limit": ["", "End", "end,refuse", "ask", "1"],
    "redis_timeout": ["", "0", "-1", "nan", "inf", "1e3", "61", ".", "1\n"],
    "redis_ca_file": ["", "/none", "/dev/null", "/"],
    "wait_replicas": [*NOT_A_COUNT, "101"],
    "cache_seconds": [*NOT_A_COUNT, "3601"],
    "why_seconds": [*NOT_A_COUNT, "2592001"],
    "service_key": [
        *("", ",", "k" * 31, f"{KEY},", f"{KEY},short", f"{'k' * 31}ñ", f"{KEY} {KEY}"),
        *("hunter2", f"hunter2,{KEY}", f"{KEY},hunter2ñ"),
    ],
    "key_prefix": ["", "a" * 33, "a b", "{a}", "ñ", "a\n", "*"],
    "http": ["", "h11"],
    "forwarded_allow_ips": [
        *("", ",", "127.0.0.1,", "garbage", "localhost", "unix:", "127.0.0.1,*", "10.0.0.0/33"),
        "10.0.0.1/8",  # uvicorn takes it for no network, because bits of the host are set
        *("256.0.0.1", "127.0.0.1 ::1", "[::1]", "127.0.0.1:80", "10.0.0.0-10.0.0.9", "10.*"),
        "1\n",
    ],
    "access_log": ["", "true", "2"],
    "log_level": ["", "DEBUG", "warning"],
    "log_format": ["", "JSON", "yaml"],
}


def pairs(table: dict[str, list[Any]]) -> list[Any]:
    return [(name, value) for name, values in table.items() for value in values]


def variable(name: str) -> str:
    return f"SESIONES_{name.upper()}"


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables():
        monkeypatch.delenv(name, raising=False)
    # A command that accepts what it must refuse ends all the same, because it cannot listen.
    monkeypatch.setenv("SESIONES_UDS", "/nonexistent/sesiones.sock")


def test_defaults_are_those_of_the_contract() -> None:
    assert Settings.read({}, {}) == Settings(
        host="127.0.0.1",
        port=8000,
        uds=None,
        workers=1,
        redis_url="redis://127.0.0.1:6379/0",
        idle_seconds=1800,
        max_seconds=43200,
        touch_seconds=1,
        max_per_user=1000,
        at_limit="end",
        redis_timeout=0.25,
        wait_replicas=0,
        service_key=(),
        key_prefix="sesiones",
        http="fast",
        forwarded_allow_ips=None,
        access_log=False,
        log_level="info",
        log_format="text",
    )


def test_tables_cover_every_setting() -> None:
    assert list(GOOD) == list(BAD) == [setting.name for setting in fields(Settings)]


@pytest.mark.parametrize(("name", "case"), pairs(GOOD))
def test_good_value_is_read_from_variable_and_flag(name: str, case: tuple[str, Any]) -> None:
    text, value = case
    assert getattr(Settings.read({variable(name): text}, {}), name) == value
    assert getattr(Settings.read({}, {name: text}), name) == value


@pytest.mark.parametrize(("name", "case"), pairs(GOOD))
def test_flag_overrides_even_a_bad_variable(name: str, case: tuple[str, Any]) -> None:
    text, value = case
    settings = Settings.read({variable(name): BAD[name][0]}, {name: text})
    assert getattr(settings, name) == value


@pytest.mark.parametrize(("name", "text"), pairs(BAD))
def test_bad_value_is_one_line_without_secrets_and_exit_2(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", f"{flag(name)}={text}"]) == 2
    by_flag = capsys.readouterr()
    monkeypatch.setenv(variable(name), text)
    assert main(["serve"]) == 2
    by_variable = capsys.readouterr()

    for (out, err), shown in (by_flag, flag(name)), (by_variable, variable(name)):
        assert out == ""
        assert err.startswith(f"sesiones: {shown} ")
        assert err.count("\n") == 1
        assert len(err) < 200
        assert not re.search("hunter2|1234", err)


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--port", "x"], {}),
        (["--service-key", ""], {}),
        ([], {"SESIONES_SERVICE_KEY": ""}),
        ([], {"SESIONES_IDLE_SECONDS": "2", "SESIONES_MAX_SECONDS": "1"}),
    ],
)
def test_process_with_bad_settings_ends_with_one_line_and_2(
    arguments: list[str], variables: dict[str, str]
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "sesiones", "serve", *arguments],
        env=variables,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith("sesiones: ")


def test_idle_above_max_is_refused_and_equal_is_not() -> None:
    with pytest.raises(SettingsError, match=r"IDLE_SECONDS \(11\).*MAX_SECONDS \(10\)"):
        Settings.read({variable("idle_seconds"): "11"}, {"max_seconds": "10"})
    # The defaults count: a max below 1800 needs an idle of its own.
    with pytest.raises(SettingsError, match=r"IDLE_SECONDS \(1800\)"):
        Settings.read({variable("max_seconds"): "1799"}, {})
    Settings.read({variable("idle_seconds"): "10", variable("max_seconds"): "10"}, {})


# Secrets from files


SECRETS = {"service_key": (KEY, (KEY,)), "redis_url": ("redis://:pw@h/1", "redis://:pw@h/1")}


def given_file(way: str, name: str, path: object) -> Settings:
    """By the variable or the flag."""
    if way == "flag":
        return Settings.read({}, {f"{name}_file": str(path)})
    return Settings.read({variable(f"{name}_file"): str(path)}, {})


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("way", ["variable", "flag"])
@pytest.mark.parametrize("name", SECRETS)
def test_secret_is_read_from_a_file(tmp_path: Path, name: str, way: str, end: str) -> None:
    text, value = SECRETS[name]
    path = tmp_path / "secret"
    path.write_bytes((text + end).encode())
    assert getattr(given_file(way, name, path), name) == value


def test_file_may_hold_several_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbf" + f"{KEY}, {'n' * 32}\n".encode())  # as some editors write
    assert given_file("variable", "service_key", path).service_key == (KEY, "n" * 32)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\r\n", b"hunter2", b"hunter2\n" + b"x" * 70_000, b"hunter2\xff", b" "]
)
@pytest.mark.parametrize("name", SECRETS)
def test_bad_secret_in_a_file_is_one_line_that_does_not_repeat_it(
    tmp_path: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    assert main(["serve", f"{flag(name)}-file", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"sesiones: {flag(name)}-file ")
    assert err.count("\n") == 1
    assert "hunter2" not in err


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("path", ["absent", "", ".", "\0", "a/b/c"])
def test_unreadable_file_is_one_line_and_exit_2(
    tmp_path: Path,
    path: str,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", f"{flag(name)}-file={path}"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "cannot be read" in err
    if "\0" not in path:
        monkeypatch.setenv(variable(f"{name}_file"), path)
        assert main(["serve"]) == 2
        assert variable(f"{name}_file") in capsys.readouterr().err


@pytest.mark.parametrize("name", SECRETS)
def test_secret_and_its_file_exclude_each_other(tmp_path: Path, name: str) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRETS[name][0])
    both = {name: SECRETS[name][0], f"{name}_file": str(path)}
    with pytest.raises(SettingsError, match="exclude each other"):
        Settings.read({}, both)
    with pytest.raises(SettingsError, match="exclude each other"):
        Settings.read({variable(key): text for key, text in both.items()}, {})


@pytest.mark.parametrize("name", SECRETS)
def test_flag_overrides_the_variables_of_a_secret(tmp_path: Path, name: str) -> None:
    text, value = SECRETS[name]
    path = tmp_path / "secret"
    path.write_text(text)
    for environ in (
        {variable(name): "bad"},
        {variable(f"{name}_file"): "/absent"},
        {variable(name): "bad", variable(f"{name}_file"): "/absent"},
    ):
        assert getattr(Settings.read(environ, {name: text}), name) == value
        assert getattr(Settings.read(environ, {f"{name}_file": str(path)}), name) == value


def test_secret_has_a_flag_for_its_file() -> None:
    parser = argparse.ArgumentParser()
    Settings.add_flags(parser, "redis_url", "port")
    options = parser.parse_args(["--redis-url-file", "x"])
    assert options.redis_url_file == "x"
    assert "service_key_file" not in vars(options)


URLS = st.one_of(
    st.text(),
    st.builds(
        "{}://{}".format,
        st.sampled_from(
            ["redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "http", "REDIS"]
        ),
        st.one_of(
            st.text(),
            st.text(alphabet="ah:@/?#[]%,&=1.\ud800 \n", max_size=30),
            st.builds(
                "h?{}={}".format,
                st.sampled_from(["db", "protocol", "ssl_cert_reqs", "retry", "x", "timeout"]),
                st.text(max_size=5),
            ),
        ),
    ),
)


@given(name=st.sampled_from([setting.name for setting in fields(Settings)]), text=st.text())
def test_arbitrary_text_is_a_value_or_a_settings_error(name: str, text: str) -> None:
    read(name, text)


@given(text=URLS)
def test_arbitrary_url_is_a_value_or_a_settings_error(text: str) -> None:
    read("redis_url", text)


def read(name: str, text: str) -> None:
    for environ, flags in ({variable(name): text}, {}), ({}, {name: text}):
        message = ""
        try:
            Settings.read(environ, flags)
        except SettingsError as error:
            message = str(error)
        assert "\n" not in message
