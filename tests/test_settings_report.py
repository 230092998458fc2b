"""What the service reports of its settings: warnings of probable mistakes, and what differs from
the defaults, without secrets."""

from dataclasses import fields

import pytest

from sesiones.settings import Settings, variables, warnings

KEY = "k" * 32


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("SESIONES_IDLE_SECOND", "SESIONES_IDLE_SECONDS"),
        ("SESIONES_REDISURL", "SESIONES_REDIS_URL"),
        ("SESIONES_SERVICE_KEYS", "SESIONES_SERVICE_KEY"),
        ("SESIONES_SERVICE_KEYFILE", "SESIONES_SERVICE_KEY_FILE"),
        ("SESIONES_WORKER", "SESIONES_WORKERS"),
        ("SESIONES_host", "SESIONES_HOST"),
        ("sesiones_port", "SESIONES_PORT"),
        ("SESIONES_", "SESIONES_"),
        ("SESIONES_ZZZZ", "SESIONES_"),
    ],
)
def test_unknown_variable_is_a_warning_with_the_nearest_setting(name: str, nearest: str) -> None:
    (line,) = warnings(Settings(), {name: "hunter2", "PATH": "/bin", "SESION": "x"}, [])
    assert line.startswith(f"{name} is no setting")
    assert nearest in line.partition("the nearest one is ")[2]
    assert "hunter2" not in line


def test_known_variables_are_no_warning() -> None:
    assert not list(warnings(Settings(), dict.fromkeys(variables(), "x"), []))
    assert {f"SESIONES_{setting.name.upper()}" for setting in fields(Settings)} < set(variables())


@pytest.mark.parametrize(
    ("arguments", "url", "flags"),
    [
        (["serve", "--redis-url", "redis://h"], "redis://h", []),
        (["serve", "--redis-url", "redis://user@h"], "redis://user@h", []),
        (["serve", "--redis-url=rediss://h?ssl_ca_certs=x"], "rediss://h?ssl_ca_certs=x", []),
        (["serve", "--redis-url", "redis://:pw@h"], "redis://:pw@h", ["--redis-url"]),
        (["serve", "--redis-url=redis://h?password=pw"], "redis://h?password=pw", ["--redis-url"]),
        (["serve", "--redis-url=redis+cluster://pw@h"], "redis+cluster://pw@h", ["--redis-url"]),
        (
            ["serve", "--redis-url=redis+sentinel://h/m?sentinel_password=pw"],
            "redis+sentinel://h/m?sentinel_password=pw",
            ["--redis-url"],
        ),
        (["serve"], "redis://:pw@h", []),
        (["serve", "--redis-url-file", "x"], "redis://:pw@h", []),
        (["serve", "--service-key", KEY], "redis://h", ["--service-key"]),
        (["serve", f"--service-key={KEY}"], "redis://h", ["--service-key"]),
        (["serve", "--service-key-file", "x"], "redis://h", []),
    ],
)
def test_secret_in_a_flag_is_a_warning(arguments: list[str], url: str, flags: list[str]) -> None:
    lines = list(warnings(Settings(redis_url=url, service_key=(KEY,)), {}, arguments))
    assert [line.split()[0] for line in lines] == flags
    assert not any("pw" in line or KEY in line for line in lines)


def test_forwarders_by_address_on_a_unix_socket_are_a_warning() -> None:
    for uds, allowed, count in (
        ("/s", "127.0.0.1", 1),
        ("/s", "*", 0),
        ("/s", None, 0),
        (None, "127.0.0.1", 0),
    ):
        settings = Settings(uds=uds, forwarded_allow_ips=allowed)
        assert len(list(warnings(settings, {}, []))) == count


def test_changed_settings_are_shown_without_secrets() -> None:
    assert not list(Settings().changed())
    settings = Settings(
        port=0, redis_url="redis://:hunter2@h", service_key=(KEY,), access_log=True, uds="/s"
    )
    assert dict(settings.changed()) == {
        "SESIONES_PORT": "0",
        "SESIONES_UDS": "/s",
        "SESIONES_REDIS_URL": "redis://h",
        "SESIONES_SERVICE_KEY": "(hidden)",
        "SESIONES_ACCESS_LOG": "1",
    }
