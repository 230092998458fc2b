"""The nodes of docs/examples in other languages: they let in whom the service lets in."""

import http.client
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest
from redis import Redis

from sesiones import tokens
from tests.harness.service import Reply, Service, comes_true, read_reply
from tests.harness.stores import KEY

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def build_express(folder: Path) -> list[str]:
    for program in "node", "npm":
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    subprocess.run(["npm", "install", "--silent", "--no-audit"], cwd=folder, check=True)
    return ["node", "app.mjs"]


def build_go(folder: Path) -> list[str]:
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    variables = {"GOCACHE": str(folder / "cache"), "GOPROXY": "off"}
    environment = os.environ | variables
    for command in ["vet"], ["build", "-o", "node"]:
        subprocess.run(["go", *command, "."], cwd=folder, env=environment, check=True)
    return ["./node"]


@pytest.fixture(scope="module", params=[("express", build_express), ("go", build_go)])
def program(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A folder, and the command that runs the node in it."""
    name, build = request.param
    folder = shutil.copytree(EXAMPLES / name, tmp_path_factory.mktemp(name) / "node")
    return folder, build(folder)


class Node:
    """A node on a free port, until it is closed."""

    def __init__(self, program: tuple[Path, list[str]], service: str) -> None:
        folder, command = program
        log = folder / "log"
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | {"SESIONES_URL": service, "PORT": "0"},
                stdout=file,
                stderr=file,
            )
        assert comes_true(lambda: "listening on" in log.read_text(), 20), log.read_text()
        match = re.search(r"listening on http://127\.0\.0\.1:(\d+)", log.read_text())
        assert match is not None
        self.port = int(match[1])

    def ask(self, *headers: tuple[str, str]) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest("GET", "/yo")
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders()
        reply = read_reply(connection)
        connection.close()
        return reply

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def node(program: tuple[Path, list[str]], service: Service) -> Iterator[Node]:
    node = Node(program, f"http://127.0.0.1:{service.port}")
    yield node
    node.close()


def test_node_lets_in_whom_the_service_lets_in(
    node: Node, service: Service, redis: "Redis"
) -> None:
    backend = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    made = service.request("POST", "/sesiones", backend, b'{"ID_Usuario": 7, "Dispositivo": "d"}')
    token = made.json()["Token_Sesion"]
    for headers in (
        [("x-auth-token", token)],
        [("authorization", f"bearer {token}")],
        [("x-auth-token", token), ("x-id-usuario", "8")],
    ):
        reply = node.ask(*headers)
        assert (reply.status, reply.json()) == (200, {"usuario": 7})
        assert reply.headers["cache-control"] == "no-store"
    for headers in (
        [],
        [("x-id-usuario", "7")],
        [("x-auth-token", tokens.make(7))],
        [("x-auth-token", "x")],
        [("authorization", f"Basic {token}")],
        [("x-auth-token", token), ("x-auth-token", token)],
        [("x-auth-token", token), ("authorization", f"Bearer {token}")],
        [("authorization", f"Bearer {token}"), ("authorization", f"Bearer {token}")],
        [("authorization", f"Bearer {token}"), ("authorization", "Basic dTpw")],
    ):
        reply = node.ask(*headers)
        assert reply.status == 401, headers
        assert reply.headers["www-authenticate"].startswith('Bearer realm="sesiones"')
        assert reply.json()["title"] == "No autorizado"
    query = f"?Token_Sesion={token}"
    service.request("DELETE", f"/sesiones/logout{query}", {"x-auth-token": token})
    assert node.ask(("x-auth-token", token)).status == 401


OTHER_ANSWERS = {
    "200 without an identity": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "200 with an empty identity": b"HTTP/1.1 200 OK\r\nX-ID-Usuario: \r\nX-ID-Sesion: 1\r\n"
    b"X-Fecha-Expiracion: 1\r\nContent-Length: 0\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\nX-ID-Usuario: 7\r\n\r\n",
    "302": b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
    "404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    "503": b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": b"-ERR unknown command\r\n",
    "closes": b"",
    "silence": None,
}


@contextmanager
def server_that_answers(answer: bytes | None) -> Iterator[str]:
    """The URL of a server that gives every request this answer, or none."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(10)
                connection.recv(65536)
                if answer is None:
                    connection.recv(65536)  # until the node gives up
                else:
                    connection.sendall(answer)
                connection.close()

    thread = Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize("answer", OTHER_ANSWERS.values(), ids=OTHER_ANSWERS)
def test_node_answers_503_where_the_service_gives_another_answer(
    program: tuple[Path, list[str]], answer: bytes | None
) -> None:
    with server_that_answers(answer) as url:
        node = Node(program, url)
        try:
            reply = node.ask(("x-auth-token", tokens.make(7)))
        finally:
            node.close()
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")


def test_node_answers_503_while_the_service_is_away(program: tuple[Path, list[str]]) -> None:
    node = Node(program, "http://127.0.0.1:1")
    try:
        reply = node.ask(("x-auth-token", tokens.make(7)))
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    finally:
        node.close()
