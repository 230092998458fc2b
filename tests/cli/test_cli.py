"""The command line as a process: output that cannot be written, locales that lack characters, exit
codes; and usage errors, which repeat no value."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import aclosing
from dataclasses import fields
from pathlib import Path

import orjson
import pytest
from redis import Redis

import sesiones
from sesiones.cli import main
from sesiones.cli.exits import EXIT_CODES, Exit
from sesiones.settings import Settings
from tests.harness.records import index_key, session_key
from tests.harness.redis_server import RedisServer
from tests.harness.service import environment
from tests.harness.stores import open_store

pytestmark = pytest.mark.slow

SESIONES = (sys.executable, "-m", "sesiones")
DEVICE = "móvil \u20ac \U0001f600"
EVERY_COMMAND = [
    *("--help", "--version", "serve --help", "health --help", "doctor", "doctor --json"),
    *("doctor --deep", "users 9", "users 9 --deep", "users 9 --json", "users 10 --end-all"),
    *("users 10 --end-all --json", "users --name ses_#1a2b3c4d", "stats", "end-all"),
]

WITHOUT_SESSIONS = r"(sesiones: the index of user 10 .*\n)?"


@pytest.fixture(autouse=True)
def odd_device(server: RedisServer, own: "Redis") -> None:
    """Give user 9 a session on an odd device, and doctor a fault whose report needs an escape."""

    async def create() -> str:
        async with aclosing(open_store(server.url)) as store:
            return (await store.create(9, DEVICE)).Token_Sesion

    key = session_key(asyncio.run(create()))
    assert own.exists(key)
    own.set(f"{key[:-1]}\u00f1", "x", ex=1000)


def run(
    server: RedisServer, command: str, redirections: str = "", **variables: str
) -> tuple[int, str, str]:
    """The exit code, standard output and standard error, by way of a shell."""
    # Python buffers output that cannot be written, as it does by default.
    buffered = {name: text for name, text in environment().items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(
        ["bash", "-c", f'"$@" {redirections}', "bash", *SESIONES, *command.split()],
        env=buffered | {"SESIONES_REDIS_URL": server.url} | variables,
        capture_output=True,
        timeout=30,
    )
    return ended.returncode, ended.stdout.decode("latin-1"), ended.stderr.decode("latin-1")


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_output_on_a_full_disk_is_one_line_and_has_an_exit_code_of_its_own(
    server: RedisServer, command: str
) -> None:
    code, _, errors = run(server, command, ">/dev/full")
    assert code == Exit.OUTPUT
    assert errors.splitlines()[-1] == (
        "sesiones: standard output cannot be written: No space left on device"
    )
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_closed_output_has_the_exit_code_of_a_full_disk(server: RedisServer, command: str) -> None:
    code, _, errors = run(server, command, ">&-")
    assert code == Exit.OUTPUT
    assert errors.splitlines()[-1] == "sesiones: standard output cannot be written: it is closed"
    assert run(server, command, "<&- >&- 2>&-") == (Exit.OUTPUT, "", "")


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_reader_that_closes_the_pipe_early_is_no_error(server: RedisServer, command: str) -> None:
    # The pipe has no reader any more before the command begins to write.
    code, _, errors = run(server, command, "| true; exit ${PIPESTATUS[0]}")
    assert code == Exit.READER_LEFT
    assert re.fullmatch(WITHOUT_SESSIONS, errors)
    code, out, errors = run(server, command, "| head -1")
    assert (code, out.count("\n")) == (0, 1)
    assert re.fullmatch(WITHOUT_SESSIONS, errors)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2> >(true)"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("users 9 --end 1", Exit.NO),
        ("users x", Exit.USAGE),
        ("serve --port x", Exit.USAGE),
        ("health --port 1", Exit.NO),
        ("users 9 --redis-url redis://127.0.0.1:1", Exit.UNAVAILABLE),
        ("users 9 --end-all", Exit.OK),
    ],
)
def test_errors_that_cannot_be_written_leave_the_exit_code(
    server: RedisServer, command: str, code: int, redirection: str
) -> None:
    ended, out, errors = run(server, command, redirection)
    assert ended == code
    assert "error" not in out
    assert "usage" not in out
    assert "Traceback" not in errors


def test_sessions_end_though_the_output_cannot_be_written(
    server: RedisServer, own: "Redis"
) -> None:
    code, _, errors = run(server, "users 9 --end-all", ">/dev/full")
    assert code == Exit.OUTPUT
    assert re.search(
        r"ended session \d+ of user 9, ses_#[0-9a-f]{8}: operator by command line\n", errors
    )
    assert not own.exists(index_key(9))
    assert run(server, "users 9 --json")[1] == "[]\n"


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, r"m\xf3vil \u20ac"),
        ({"PYTHONIOENCODING": "ascii"}, r"m\xf3vil \u20ac"),
        ({"PYTHONIOENCODING": "ascii:strict"}, r"m\xf3vil \u20ac"),
        ({"PYTHONIOENCODING": "latin-1"}, "móvil \\u20ac"),
        ({"PYTHONIOENCODING": "iso8859-1:strict"}, "móvil \\u20ac"),
    ],
)
def test_character_that_the_locale_lacks_is_escaped(
    server: RedisServer, variables: dict[str, str], shown: str
) -> None:
    code, out, errors = run(server, "users 9", **variables)
    assert (code, errors) == (0, "")
    assert out.endswith(rf"  {shown} \U0001f600" + "\n")
    code, out, errors = run(server, "users 9 --json", **variables)
    assert orjson.loads(out)[0]["Dispositivo"] == DEVICE
    for flags in "", "--json":
        code, out, errors = run(server, f"doctor --deep {flags}", **variables)
        assert (code, errors) == (Exit.NO, "")
        assert "WRONGTYPE" in out


def test_utf_8_shows_every_character(server: RedisServer) -> None:
    _, out, _ = run(server, "users 9", PYTHONIOENCODING="utf-8")
    assert out.encode("latin-1").decode().endswith(f"  {DEVICE}\n")


def test_each_outcome_has_an_exit_code_of_its_own(server: RedisServer) -> None:
    away = "--redis-url redis://127.0.0.1:1"
    outcomes = {
        "users 9": Exit.OK,
        "users 8": Exit.OK,
        "users 9 --end 1": Exit.NO,
        "users 8 --end-all": Exit.OK,
        f"doctor {away}": Exit.NO,
        "users x": Exit.USAGE,
        "users 9 --redis-timeout x": Exit.USAGE,
        f"users 9 {away}": Exit.UNAVAILABLE,
        f"users 9 --deep {away}": Exit.UNAVAILABLE,
        f"users 9 --end 1 {away}": Exit.UNAVAILABLE,
        f"users 9 --end-all {away}": Exit.UNAVAILABLE,
        f"users 9 --end-all --deep {away}": Exit.UNAVAILABLE,
    }
    for command, code in outcomes.items():
        ended, _, errors = run(server, command)
        assert ended == code, command
        if code == Exit.UNAVAILABLE:
            assert re.fullmatch(r"sesiones: .+\n", errors), command


@pytest.mark.parametrize("command", ["doctor --json", "users 9", "users 9 --end-all"])
def test_probable_mistake_is_a_warning_without_the_secret(
    server: RedisServer, command: str
) -> None:
    url = "redis://u:hunter2@127.0.0.1:1"
    ended, output, errors = run(
        server, f"{command} --redis-url {url}", SESIONES_KEY_PREFX="x", SESIONES_HOST="::1"
    )
    warned = [line for line in errors.splitlines() if line.startswith("sesiones: warning: ")]
    assert len(warned) == 2
    assert "SESIONES_KEY_PREFX" in warned[0]
    assert "nearest one is SESIONES_KEY_PREFIX" in warned[0]
    assert "SESIONES_REDIS_URL_FILE" in warned[1]
    assert "hunter2" not in output + errors
    assert ended == (Exit.NO if command == "doctor --json" else Exit.UNAVAILABLE)


@pytest.mark.parametrize("command", ["doctor", "users 9", "users 9 --end-all"])
def test_interrupt_ends_a_command_without_a_traceback(command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            [*SESIONES, *command.split()],
            env=environment()
            | {"SESIONES_REDIS_URL": f"redis://127.0.0.1:{silent.getsockname()[1]}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        connection, _ = silent.accept()  # it waits for an answer
        with connection:
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=20) == (b"", b"")
    assert process.returncode == Exit.INTERRUPTED


def test_every_exit_code_is_documented() -> None:
    operate = (Path(__file__).parents[2] / "docs" / "operate.md").read_text("utf-8")
    codes = [int(code) for code in Exit]
    assert [int(code) for code in re.findall(r"^  (\d+) ", EXIT_CODES, re.MULTILINE)] == codes
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", operate, re.MULTILINE)] == codes


WEB_PACKAGES = "uvicorn", "starlette", "httptools", "uvloop", "prometheus_client"


def without(folder: Path, *packages: str) -> dict[str, str]:
    """The variable with which a process finds none of the packages."""
    for package in packages:
        (folder / f"{package}.py").write_text(f"raise ModuleNotFoundError(name={package!r})")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("package", ["uvicorn", "starlette", "httptools", "prometheus_client"])
def test_serve_without_a_package_names_the_extra(
    server: RedisServer, tmp_path: Path, package: str
) -> None:
    advice = f"sesiones: serve needs the package {package}: pip install 'sesiones[server]'\n"
    ended = run(server, "serve --port 0", **without(tmp_path, package))
    assert ended == (Exit.USAGE, "", advice)


def test_other_commands_need_no_web_framework(server: RedisServer, tmp_path: Path) -> None:
    variables = without(tmp_path, *WEB_PACKAGES)
    for command, code in (
        ("--version", Exit.OK),
        ("serve --help", Exit.OK),
        ("serve --port x", Exit.USAGE),
        ("doctor", Exit.OK),
        ("users 9", Exit.OK),
        ("users 9 --end-all --deep", Exit.OK),
        ("health --port 1", Exit.NO),
    ):
        ended, _, errors = run(server, command, **variables)
        assert ended == code, errors
        assert "sesiones[server]" not in errors


def usage_error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == Exit.USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err.splitlines()[-1].partition(": error: ")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["users", "x"], "argument ID_Usuario: must be an integer from 0 to 9007199254740991"),
        (["users", "-1"], "argument ID_Usuario: must be an integer from 0 to 9007199254740991"),
        (["users", "1.5"], "argument ID_Usuario: must be an integer from 0 to 9007199254740991"),
        (["users", str(2**53)], "argument ID_Usuario: must be an integer from 0 to 900719925474"),
        (["users", "\u0667"], "argument ID_Usuario: must be an integer from 0 to 9007199254740991"),
        (["users", "7", "--end", "0"], "argument --end: must be an integer from 1 to 900719925474"),
        (["users", "7", "--end", "x"], "argument --end: must be an integer from 1 to 900719925474"),
        (["users", "7", "--end"], "argument --end: takes a value, ID_SESION"),
        (["users", "7", "--key-prefix"], "argument --key-prefix: takes a value, PREFIX"),
        (["serve", "--idle-seconds"], "argument --idle-seconds: takes a value, SECONDS"),
        (["users", "7", "--end", "1", "--end-all"], "argument --end-all: not allowed with"),
        (
            ["users", "--name", "7"],
            "argument --name: must be ses_# and 8 hex digits, as in the log",
        ),
        (["users", "7", "--name", "1a2b3c4d"], "argument --name: not allowed with argument ID_Usu"),
        (["users", "--name", "1a2b3c4d", "--end-all"], "argument --end-all: not allowed with argu"),
        (["end-all", "--before", "SECRET"], "argument --before: must be a time with its time zone"),
        (["end-all", "7"], "1 argument too many"),
        (["users"], "the following arguments are required: ID_Usuario"),
        ([], "the following arguments are required: COMMAND"),
        (["who"], "argument COMMAND: must be serve, doctor, users, stats, "),
        (["users", "7", "8"], "1 argument too many"),
        (["doctor", "7", "8"], "2 arguments too many"),
    ],
)
def test_argument_error_says_what_is_wanted(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert usage_error(capsys, *words).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "--service-kye", "SECRET"], "unknown flag --service-kye"),
        (["serve", "--service-kye=SECRET"], "unknown flag --service-kye"),
        (["serve", "--service-ke=SECRET"], "unknown flag --service-ke"),  # no abbreviations
        (["doctor", "--service-key=SECRET", "--x", "SECRET"], "unknown flags --service-key, --x"),
        (["doctor", "-pSECRET"], "unknown flag -p"),
        (["users", "7", "--key\x1b[2J=SECRET"], r"unknown flag --key\x1b[2J"),
        (["users", "7", "--key\udcff=SECRET"], r"unknown flag --key\udcff"),
        (["users", "SECRET"], "argument ID_Usuario: must be an integer"),
        (["users", "7", "--end=SECRET"], "argument --end: must be an integer"),
        (["users", "7", "SECRET"], "1 argument too many"),
        (["doctor", "--json=SECRET"], "argument --json: takes no value"),
        (["doctor", "--json=it's SECRET"], "argument --json: takes no value"),
        (["users", "7", "--end-all=SECRET"], "argument --end-all: takes no value"),
        (["doctor", "-hSECRET"], "argument -h/--help: takes no value"),
        (["--redis-url", "redis://:SECRET@h", "doctor"], "argument COMMAND: must be serve, doctor"),
        (["--redis-url=redis://:SECRET@h", "doctor"], "unknown flag --redis-url"),
        (["--service-key=SECRET", "serve", "--x"], "unknown flags --service-key, --x"),
        (["redis://:SECRET@h"], "argument COMMAND: must be serve, doctor, users, stats, "),
    ],
)
def test_usage_error_repeats_no_value(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    shown = usage_error(capsys, *words)
    assert "SECRET" not in shown
    assert shown.startswith(message)


def test_help_names_every_setting_and_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    metavars = {f"--{setting.name.replace('_', '-')}": "" for setting in fields(Settings)} | {
        "--idle-seconds": "SECONDS",
        "--redis-timeout": "SECONDS",
        "--max-per-user": "N",
        "--wait-replicas": "N",
        "--workers": "N",
        "--uds": "PATH",
        "--port": "PORT",
        "--redis-url": "URL",
        "--service-key": "KEYS",
        "--key-prefix": "PREFIX",
        "--log-format": "text|json",
    }
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    usage = capsys.readouterr().out
    for flag, metavar in metavars.items():
        assert f"{flag} {metavar}" in usage


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (Exit.OK, f"{sesiones.__version__}\n")


@pytest.mark.parametrize("redirection", ["<&-", "<&1", "< <(printf '\\xff')"])
def test_standard_input_that_cannot_be_read_is_a_usage_error(
    server: RedisServer, redirection: str
) -> None:
    code, out, errors = run(server, "why -", redirection, PYTHONIOENCODING="utf-8:strict")
    assert (code, out) == (Exit.USAGE, "")
    assert errors.startswith("sesiones: why takes an ID_Usuario, a token")


def test_closed_standard_descriptor_is_not_given_to_redis(server: RedisServer) -> None:
    program = (
        "import os, sys; from sesiones.cli import console; console.prepare(); "
        "files = {os.readlink(f'/proc/self/fd/{n}') for n in range(3)}; "
        "sys.exit(files != {'/dev/null'})"
    )
    command = f'{sys.executable} -c "{program}" <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", command], env=os.environ, timeout=20).returncode == 0
