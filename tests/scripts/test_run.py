"""`make run`, in a copy of the project: what it starts, says and leaves behind."""

import re
import shutil
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from tests.harness.make_run import Run, make_parents, paste, processes, refused_run, running
from tests.harness.redis_server import RedisServer, unix_url
from tests.harness.service import comes_true
from tests.harness.stores import KEY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")


# The run.


@needs_curl
def test_the_curl_that_it_prints_works_and_sessions_outlive_ctrl_c(folder: Path) -> None:
    with running(folder) as run:
        answer = paste(run.said["Try"])
        assert answer.startswith("HTTP/1.1 201 "), answer
        token = re.findall(r"ses_[A-Za-z0-9_-]{45}", answer)[0]
        assert run.request("GET", "/sesiones/self", token)[0] == 200
        redis_socket = folder / "var" / "redis.sock"
        assert run.said["Redis"].startswith(f"redis-cli -s {redis_socket} ")
        with Redis(unix_socket_path=str(redis_socket)) as redis:
            assert stat.S_IMODE(redis_socket.stat().st_mode) == 0o700
            assert redis.dbsize() == 3
        assert len(processes(folder)) == 2

        run.signal_group()
        assert run.ended() == 0
        assert not processes(folder)
        assert not redis_socket.exists()
        assert "Traceback" not in run.errors.read_text()

    with running(folder) as run:
        assert run.request("GET", "/sesiones/self", token)[0] == 200


@needs_curl
def test_printed_curl_works_with_a_service_key_and_a_unix_socket(folder: Path) -> None:
    path = folder / "a socket"
    with running(folder, SESIONES_SERVICE_KEY=KEY, SESIONES_UDS=str(path)) as run:
        assert KEY not in run.said["Try"]
        assert paste(run.said["Try"], KEY=KEY).startswith("HTTP/1.1 201 "), run.said["Try"]
        assert paste(run.said["Try"], KEY="wrong").startswith("HTTP/1.1 401 ")
    assert not path.exists()


@needs_curl
@pytest.mark.parametrize("place", ["plain", "a b/it's 100%25 #1?", "/".join(["deep" * 10] * 4)])
def test_export_line_names_redis_in_another_shell(folder: Path, place: str) -> None:
    """Also where the path needs quoting, and where it is longer than a socket's may be."""
    folder = folder.rename(make_parents(folder.parent / place / "project"))
    lines = set()
    for sessions in 1, 2:
        with running(folder) as run:
            lines.add(run.said["Env"])
            paste(run.said["Try"])
            users = f"{sys.executable} -m sesiones users 7"
            assert paste(f"{run.said['Env']}; {users}").count("laptop") == sessions
    assert len(lines) == 1
    assert "export SESIONES_REDIS_URL=" in lines.pop()


@needs_curl
def test_tour_of_the_readme_works_after_the_export_line(folder: Path) -> None:
    tour = (ROOT / "README.md").read_text("utf-8").partition("## Tour")[2].partition("\n## ")[0]
    commands = "".join(re.findall(r"^```sh\n(.*?)^```$", tour, re.DOTALL | re.MULTILINE))
    with running(folder) as run:
        commands = commands.replace("127.0.0.1:8000", f"127.0.0.1:{run.port}")
        script = (
            f"{run.said['Env']}; cd '{folder}'; {commands}\n{sys.executable} -m sesiones doctor"
        )
        said = paste(script)
    assert said.count('"Dispositivo":"laptop"') == 2
    assert '"Dispositivo":"tablet"' in said
    assert "HTTP/1.1 200 OK" in said
    assert '{"Sesiones_Eliminadas":1}' in said
    assert '"status":401' in said
    assert "writes: Redis takes them" in said


def test_with_its_own_export_line_it_starts_redis_again_and_prints_where_the_docs_are(
    folder: Path,
) -> None:
    own = unix_url(folder / "var" / "redis.sock")
    with running(folder, SESIONES_REDIS_URL=own) as run:
        assert own in run.said["Env"]
        assert run.said["Docs"] == f"http://127.0.0.1:{run.port}/docs"
        assert run.request("GET", "/docs")[0] == 200
        assert run.request("GET", "/sesiones/self", "ses_" + "A" * 45)[0] == 401


def test_socket_left_by_a_killed_redis_is_replaced(folder: Path) -> None:
    path = make_parents(folder / "var" / "redis.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with running(folder) as run:
        assert run.request("GET", "/sesiones/self", "ses_" + "A" * 45)[0] == 401


def test_short_folder_that_other_users_may_enter_is_refused(folder: Path) -> None:
    folder = folder.rename(make_parents(folder.parent / "/".join(["deep" * 10] * 4) / "project"))
    with running(folder) as run:
        path = re.search("unix://(.*)/redis.sock", run.said["Env"])
    assert path is not None
    short = Path(path[1])
    assert not short.exists()
    short.mkdir()
    try:
        short.chmod(0o755)
        code, line = refused_run(folder, SESIONES_PORT="0")
    finally:
        short.rmdir()
    assert code == 1
    assert str(short) in line


def test_with_a_redis_url_it_starts_no_redis(folder: Path, redis_server: RedisServer) -> None:
    with running(folder, SESIONES_REDIS_URL=redis_server.url) as run:
        assert "Redis" not in run.said
        assert run.request("GET", "/sesiones/self", "ses_" + "A" * 45)[0] == 401
        assert processes(folder) == [run.process.pid]
        assert not (folder / "var").exists()


# How it ends.


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGHUP, "1"), (signal.SIGINT, "2"), (signal.SIGTERM, "2"), (signal.SIGHUP, "2")],
)
def test_every_end_leaves_nothing_behind(
    folder: Path, number: signal.Signals, workers: str
) -> None:
    with running(folder, SESIONES_WORKERS=workers) as run:
        started = "Application startup complete"
        assert comes_true(lambda: run.errors.read_text().count(started) == int(workers), 5)
        assert len(processes(folder)) >= 1 + int(workers)
        if number == signal.SIGTERM:
            run.process.terminate()
        else:
            run.signal_group(number)
        assert run.ended() == 0
        assert comes_true(lambda: not processes(folder), 2)


@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.02), (signal.SIGHUP, 0.04)]
)
def test_an_end_just_after_the_start_leaves_nothing_behind(
    folder: Path, number: signal.Signals, seconds: float
) -> None:
    with running(folder) as run:
        time.sleep(seconds)
        run.signal_group(number)
        assert run.process.wait(timeout=3) == 0
        assert not processes(folder)


@pytest.mark.parametrize("seconds", [0.15, 0.25, 0.35])
def test_an_end_while_it_starts_leaves_nothing_behind(folder: Path, seconds: float) -> None:
    run = Run(folder)
    time.sleep(seconds)
    run.signal_group()
    run.process.communicate(timeout=10)
    assert comes_true(lambda: not processes(folder), 2)


def test_an_impatient_ctrl_c_leaves_nothing_behind(folder: Path) -> None:
    with running(folder) as run:
        assert run.request("GET", "/nada")[0] == 404
        for _ in range(5):
            run.signal_group()
            time.sleep(0.05)
            if run.process.poll() is not None:
                break
        assert run.ended() == 0
        assert not processes(folder)


@needs_curl
def test_after_a_kill_the_next_run_serves_the_same_sessions(folder: Path) -> None:
    """Nothing can clean up after SIGKILL, and two Redis servers would ruin the data: the next run
    first ends the one that is left."""
    with running(folder) as run:
        token = re.findall(r"ses_[A-Za-z0-9_-]{45}", paste(run.said["Try"]))[0]
        run.process.kill()
        run.ended()
    assert len(processes(folder)) == 1
    with running(folder) as again:
        assert again.request("GET", "/sesiones/self", token)[0] == 200
        assert len(processes(folder)) == 2


def test_redis_does_not_hold_the_port_where_output_is_closed(folder: Path) -> None:
    """A closed standard descriptor would be the listening socket's, and Redis would inherit it."""
    run = Run(folder, redirections="<&- >&-")
    try:
        assert comes_true(lambda: answers(run), 10)
        run.process.kill()
        run.ended()
        with pytest.raises(ConnectionRefusedError):
            run.request("GET", "/livez")
    finally:
        run.process.kill()
        run.process.communicate()


def answers(run: Run) -> bool:
    try:
        return run.request("GET", "/livez")[0] == 200
    except OSError:
        return False


# What it refuses.


def test_a_taken_port_is_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, line = refused_run(folder, SESIONES_PORT=port)
    assert code != 0
    assert port in line
    assert not processes(folder)


def test_a_second_run_in_the_folder_is_one_line(folder: Path) -> None:
    with running(folder) as run:
        code, line = refused_run(folder, SESIONES_PORT="0")
        assert code != 0
        assert "make run" in line
        assert run.request("GET", "/sesiones/self", "ses_" + "A" * 45)[0] == 401
        assert len(processes(folder)) == 2


def test_a_bad_setting_is_one_line(folder: Path) -> None:
    code, line = refused_run(folder, SESIONES_IDLE_SECONDS="soon")
    assert (code, line.count("SESIONES_IDLE_SECONDS")) == (2, 1)
    code, line = refused_run(folder, SESIONES_HOST="0.0.0.0", SESIONES_PORT="0")
    assert code == 2
    assert "SESIONES_SERVICE_KEY" in line
    assert not (folder / "var").exists()


def test_a_redis_that_does_not_start_is_one_line(folder: Path) -> None:
    """Its data cannot be read."""
    manifest = folder / "var" / "redis" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("this is none\n")
    code, line = refused_run(folder, SESIONES_PORT="0")
    assert code != 0
    assert "Redis" in line
    assert not processes(folder)
