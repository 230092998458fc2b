"""The service as a process, and its wire: what the tests outside the process use."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson

TOKEN = re.compile(r"ses_[A-Za-z0-9_-]{45}")


@dataclass
class Reply:
    """A response: headers by lower-case name (repeated ones joined with a comma)."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)


def environment() -> dict[str, str]:
    """This process's, without settings, and without what a `make` above it tells its children."""
    foreign = "SESIONES_", "MAKE", "MFLAGS"
    return {k: v for k, v in os.environ.items() if not k.startswith(foreign)}


def children(pid: int) -> list[int]:
    """The processes that a process has started: none, once it has ended."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(word) for word in text.split()]


def serves(port: int) -> bool:
    """Whether the service on the port answers /livez."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def comes_true(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def refused(command: list[str], folder: Path | None = None, **variables: str) -> tuple[int, str]:
    """The exit code and the one line of a command that must not serve."""
    ended = subprocess.run(
        command,
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.returncode, ended.stderr


class Service:
    """`python -m sesiones serve` on a free port of loopback; variables are its environment."""

    command: tuple[str, ...] = (sys.executable, "-m", "sesiones")

    def __init__(self, *flags: str, **variables: str) -> None:
        self.flags = flags
        self.variables = variables
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self._log = tempfile.NamedTemporaryFile(prefix="sesiones-log-")  # noqa: SIM115

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "it has not been started"
        return self._process

    @property
    def log(self) -> str:
        with open(self._log.name) as file:
            return file.read()

    def start(self) -> Self:
        self._process = subprocess.Popen(
            [*self.command, "serve", "--port", "0", *self.flags],
            env=environment() | self.variables,
            stderr=self._log,
        )
        deadline = time.monotonic() + 20
        # Both: what Redis answers is logged from beside, and a test that compares logs comes later.
        while not (
            (match := re.search(r"listening on \('127\.0\.0\.1', (\d+)\)", self.log))
            and "; settings: " in self.log
        ):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        self.port = int(match[1])
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=20)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()
        log = self.log
        self._log.close()
        assert not TOKEN.search(log), "a token is in the log"

    def request(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | str | None = None,
    ) -> Reply:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            return read_reply(connection)
        finally:
            connection.close()

    def new_session(self, ID_Usuario: int = 7, Dispositivo: str = "d") -> dict[str, Any]:
        """The object of a new session."""
        key = self.variables.get("SESIONES_SERVICE_KEY")
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        body = orjson.dumps({"ID_Usuario": ID_Usuario, "Dispositivo": Dispositivo})
        made = self.request("POST", "/sesiones", headers, body)
        assert made.status == 201
        session: dict[str, Any] = made.json()
        return session

    def connect(self) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, data: bytes) -> bytes:
        """Everything that comes back for the bytes, up to the end of the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            received = bytearray()
            while chunk := connection.recv(65536):
                received += chunk
            return bytes(received)


def read_reply(connection: http.client.HTTPConnection) -> Reply:
    response = connection.getresponse()
    fields: dict[str, str] = {}
    for name, value in response.getheaders():
        name = name.lower()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return Reply(response.status, fields, response.read())
