"""The command blocks of docs/runbooks.md, run as they stand on machines that the page takes for
granted: a Redis under systemd, on redis.conf, and a second one to move to."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.harness.ports import free_port
from tests.harness.redis_binary import find_binaries
from tests.harness.redis_server import CONFIGURATION, wait_until
from tests.harness.service import environment

PAGE = (CONFIGURATION.parent / "docs" / "runbooks.md").read_text("utf-8")
SECTIONS = re.split(r"^##+ (.+)\n", PAGE, flags=re.MULTILINE)
BLOCKS = {
    heading: re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    for heading, section in zip(SECTIONS[1::2], SECTIONS[2::2], strict=True)
}
"""The command blocks of each section."""


class Machine:
    """One Redis server as a service of the system, which ``systemctl`` starts and stops."""

    def __init__(self, folder: Path, binary: str, **options: str) -> None:
        self.folder, self.binary = folder, binary
        self.data, self.configuration = folder / "data", folder / "etc"
        self.socket, self.port = folder / "redis.sock", free_port()
        for path in self.data, self.configuration:
            path.mkdir(parents=True)
        lines = {
            "port": str(self.port),
            "unixsocket": str(self.socket),
            "dir": str(self.data),
            "pidfile": str(folder / "pid"),
            "logfile": str(folder / "redis.log"),
            "daemonize": "yes",
            "repl-diskless-sync-delay": "0",
        } | {name.replace("_", "-"): value for name, value in options.items()}
        file = self.configuration / "redis.conf"
        text = CONFIGURATION.read_text("utf-8").replace("\nport 6379\n", "\n")
        file.write_text(text + "".join(f"{name} {value}\n" for name, value in lines.items()))
        (folder / "systemctl").write_text(
            "#!/bin/bash\nset -eu\n"
            f'cli() {{ "{shutil.which("redis-cli")}" -s {self.socket} "$@"; }}\n'
            'case "$1" in\n'
            f"start) {binary} {file}; until cli PING 2>&1 | grep -qE 'PONG|NOAUTH|NOPERM'; "
            "do sleep 0.05; done;;\n"
            # Redis removes its pidfile as its last act.
            f"stop) kill $(cat {folder}/pid); while [ -e {folder}/pid ]; do sleep 0.05; done;;\n"
            "esac\n"
        )

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def systemctl(self, word: str, seconds: float = 20) -> None:
        subprocess.run(["bash", str(self.folder / "systemctl"), word], check=True, timeout=seconds)

    def client(self, **options: Any) -> Redis:
        return Redis(unix_socket_path=str(self.socket), decode_responses=True, **options)

    def close(self) -> None:
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)
            wait_until(lambda: not self._accepts(), "the end of Redis")

    def _accepts(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


class Runbook:
    """Runs blocks of the page in a shell, with the names of the page for the test's machines."""

    def __init__(self, folder: Path, machines: dict[str, Machine], **ports: int) -> None:
        """``ports``: of other servers that redis-cli reaches by a name."""
        self.folder, self.machines, self._ports = folder, machines, ports
        self.variables: dict[str, str] = {}
        """Of the shell, beside SESIONES_REDIS_URL, which names the first machine."""
        programs = folder / "bin"
        programs.mkdir()
        servers = {name: f"-s {machine.socket}" for name, machine in machines.items()}
        servers |= {name: f"-p {port}" for name, port in ports.items()}
        cases = "".join(f'{name}) server="{flags}";;\n' for name, flags in servers.items())
        (programs / "redis-cli").write_text(
            f'#!/bin/bash\nserver="{next(iter(servers.values()))}"\n'
            f'if [ "$1" = -h ]; then case "$2" in\n{cases}esac; shift 2; fi\n'
            # Unlike redis-cli by itself, fail when a command does.
            "user=${REDISCLI_USER:+--user $REDISCLI_USER}\n"
            f'exec {shutil.which("redis-cli")} -e $user $server "$@"\n'
        )
        for first in [*machines.values()][:1]:
            shutil.copy(first.folder / "systemctl", programs)
        (programs / "sesiones").write_text(f'#!/bin/bash\nexec {sys.executable} -m sesiones "$@"\n')
        for program in programs.iterdir():
            program.chmod(0o755)
        self._path = f"{programs}:{os.environ['PATH']}"

    def __call__(self, heading: str, number: int = 0, **instead: str) -> str:
        """Run a block of that section. ``instead``: words in the place of the page's."""
        block = BLOCKS[heading][number]
        for name, word in instead.items():
            assert name in block or word in block, (name, block)
        return self.run(block, **instead)

    def run(self, block: str, **instead: str) -> str:
        """Standard output of the commands; standard error is in ``errors``."""
        words = {"/var/backups": str(self.folder / "backups")}
        variables = {"PATH": self._path, "PYTHONPATH": str(CONFIGURATION.parent)}
        for first in [*self.machines.values()][:1]:
            words["/var/lib/redis"] = str(first.data)
            words["/etc/redis"] = str(first.configuration)
            variables["SESIONES_REDIS_URL"] = first.url
        ports = {name: machine.port for name, machine in self.machines.items()} | self._ports
        words |= {f" {name} 6379": f" 127.0.0.1 {port}" for name, port in ports.items()}
        for word, ours in (words | instead).items():
            block = block.replace(word, ours)
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.folder,
            env=environment() | variables | self.variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, (block, ended.stdout, ended.stderr)
        self.errors = ended.stderr
        return ended.stdout


def binary_of(kind: str) -> str:
    for binary in find_binaries()[0]:
        if binary.kind == kind:
            return binary.path
    pytest.skip(f"there is no {kind}")


Start = Callable[..., Runbook]
"""The fixture ``start``: starts the named machines, each with the kind of server that is named for
it, or else with the usual one."""


def now() -> str:
    """A time of the page's form, which lies just after everything that has happened."""
    time.sleep(1)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
