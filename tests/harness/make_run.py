"""A `make run` in a copy of the project."""

import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.ports import free_port
from tests.harness.service import environment, refused


def processes(folder: Path) -> list[int]:
    """Those that work in the folder: the service in it, Redis in its var/redis."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                where = Path(os.readlink(process / "cwd"))
            except OSError:
                continue  # not ours, or a zombie
            if where.is_relative_to(folder):
                found.append(int(process.name))
    return found


class Run:
    """A `make run` in the foreground of a terminal: a process group of its own."""

    def __init__(self, folder: Path, *, redirections: str = "", **variables: str) -> None:
        command = ["/bin/sh", "-c", f'exec "$@" {redirections}', "sh"]
        self.port = free_port()
        self.errors = folder / f"errors-{self.port}"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*command, sys.executable, "-m", "scripts.run"],
                cwd=folder,
                env=environment() | {"SESIONES_PORT": str(self.port)} | variables,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self.said: dict[str, str] = {}

    def wait_until_it_serves(self) -> "Run":
        assert self.process.stdout is not None
        watchdog = threading.Timer(20, self.process.kill)
        watchdog.start()
        while "Try" not in self.said:
            line = self.process.stdout.readline()
            assert line, self.errors.read_text()
            name, _, text = line.partition(":")
            self.said[name] = text.strip()
        watchdog.cancel()
        return self

    def request(self, method: str, path: str, token: str = "") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, headers={"x-auth-token": token})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def signal_group(self, number: signal.Signals = signal.SIGINT) -> None:
        """What a terminal does on Ctrl-C, and with SIGHUP when it is closed."""
        os.killpg(self.process.pid, number)

    def ended(self) -> int:
        """The exit code."""
        return self.process.wait(timeout=9)


@contextmanager
def running(folder: Path, **variables: str) -> Iterator[Run]:
    run = Run(folder, **variables)
    try:
        yield run.wait_until_it_serves()
    finally:
        if run.process.poll() is None:
            run.process.terminate()
            try:
                run.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                run.process.kill()
                run.process.wait()
        assert run.process.stdout is not None
        run.process.stdout.close()


def refused_run(folder: Path, **variables: str) -> tuple[int, str]:
    return refused([sys.executable, "-m", "scripts.run"], folder, **variables)


def paste(command: str, **variables: str) -> str:
    """What a shell says to the line."""
    done = subprocess.run(
        command, shell=True, env=environment() | variables, capture_output=True, text=True
    )
    return done.stdout


def make_parents(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path
