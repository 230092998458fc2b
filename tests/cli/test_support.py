"""docs/support.md: each cause of a logout is played on a service, and `sesiones why` and the log
say of it what the page says."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis import Redis

from tests.harness.command_line import CommandLine
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, comes_true
from tests.harness.stores import KEY, service_variables

PAGE = (Path(__file__).parents[2] / "docs" / "support.md").read_text("utf-8")
JSON = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
USER = "42"


@pytest.fixture(scope="module")
def service(server: RedisServer) -> Iterator[Service]:
    variables = service_variables(server.url)
    with Service(
        **variables,
        SESIONES_WHY_SECONDS="600",
        SESIONES_MAX_PER_USER="2",
        SESIONES_LOG_FORMAT="json",
    ) as service:
        yield service


@pytest.fixture(autouse=True)
def why_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESIONES_WHY_SECONDS", "600")


class Case:
    """A session of user 42 on a service, and the operator's commands."""

    def __init__(self, service: Service, sesiones: CommandLine, redis: "Redis") -> None:
        self.service = service
        self.sesiones = sesiones
        self.redis = redis
        self.sesion = service.new_session(42)
        self.errors = ""
        """What an operator's command has logged on its standard error."""

    def log_out(self, path: str = "logout") -> None:
        token = self.sesion["Token_Sesion"]
        asked = f"/sesiones/{path}?Token_Sesion={token}"
        assert self.service.request("DELETE", asked, {"x-auth-token": token}).status == 200

    def login(self, **fields: Any) -> None:
        body = orjson.dumps({"ID_Usuario": 42, "Dispositivo": "d", **fields})
        made = self.service.request("POST", "/sesiones", JSON, body)
        assert made.status == 201
        self.sesion = made.json()

    def put(self, **fields: int) -> None:
        body = orjson.dumps(self.sesion | fields)
        assert self.service.request("PUT", "/sesiones", JSON, body).status == 200

    def is_refused(self) -> bool:
        caller = {"x-auth-token": self.sesion["Token_Sesion"], "X-Sin-Deslizar": "1"}
        return self.service.request("GET", "/sesiones/self", caller).status == 401

    def log_out_all(self) -> None:
        self.log_out("logoutAll")

    def exceed_the_limit(self) -> None:
        self.login(Ventana=600)  # the one that expires first
        for _ in range(2):
            self.service.new_session(42)

    def switch_off(self) -> None:
        self.put(Estado_Sesion=0)

    def cut_short(self) -> None:
        self.put(Fecha_Expiracion=self.sesion["Ultima_Actividad"] + 2)

    def end_all(self) -> None:
        self.errors = self.sesiones.users("42", "--end-all")[2]

    def flush(self) -> None:
        self.redis.flushall()

    def expire(self) -> None:
        self.login(Ventana=1)


slow = pytest.mark.slow  # the session has to expire
CAUSES = [
    pytest.param("`logout` of one device", Case.log_out, id="logout"),
    pytest.param("`logoutAll`", Case.log_out_all, id="logoutAll"),
    pytest.param("one more login", Case.exceed_the_limit, id="limit"),
    pytest.param("a `PUT` with `Estado_Sesion` 0", Case.switch_off, id="inactive"),
    pytest.param("a `PUT` with an early", Case.cut_short, id="cut short", marks=slow),
    pytest.param("an operator", Case.end_all, id="end-all"),
    pytest.param("`FLUSHALL`", Case.flush, id="FLUSHALL"),
    pytest.param("it expired", Case.expire, id="expired", marks=slow),
]


def row(cause: str) -> tuple[list[str], list[str]]:
    """What the page says that `why` says, and that the log says."""
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {cause}"))
    _, why, log = line.strip("| ").split(" | ")
    return re.findall(r"`([^`]+)`", why), re.findall(r"`([^`]+)`", log)[:1]


def has(text: str, promised: str) -> bool:
    """Whether a line of the text has what is promised, with anything for the dots."""
    return re.search(re.escape(promised).replace(r"\.\.\.", ".*"), text) is not None


def events(service: Service) -> str:
    lines = map(orjson.loads, service.log.splitlines())
    return "\n".join(line["message"] for line in lines if line.get("ID_Usuario") == 42)


@pytest.mark.parametrize(("cause", "play"), CAUSES)
def test_cause_of_a_401_is_told_as_the_page_says(
    service: Service,
    sesiones: CommandLine,
    own: "Redis",
    cause: str,
    play: Callable[[Case], None],
) -> None:
    case = Case(service, sesiones, own)
    before = len(events(service))
    play(case)
    assert comes_true(case.is_refused, 10)
    said, logged = row(cause)
    log = events(service)[before:] + case.errors
    for promised in logged:
        assert has(log, promised), (promised, log)
    if cause == "`FLUSHALL`":
        assert has(sesiones("why", "42")[2], said[0])
        case.login()
        answers = sesiones("why", "42")
        assert answers[0] == 0
        assert has(answers[2], said[1])
        return
    for whose in "42", case.sesion["Token_Sesion"]:
        code, out, errors = sesiones("why", whose, "--deep")
        assert (code, has(out, said[0])) == (0, True), (out, errors)
    assert case.sesion["Token_Sesion"] not in out + errors


def test_every_cause_of_the_page_is_played() -> None:
    section = PAGE.partition("## What became of a session")[2].partition("\n## ")[0]
    causes = re.findall(r"^\| (?!cause|---)(.*?) \|", section, re.MULTILINE)
    assert len(causes) == len(CAUSES)


@pytest.mark.skipif(shutil.which("jq") is None, reason="there is no jq")
def test_examples_of_the_log_find_what_they_say(
    service: Service, sesiones: CommandLine, own: "Redis", tmp_path: Path
) -> None:
    case = Case(service, sesiones, own)
    case.switch_off()
    case.put(Estado_Sesion=1)
    case.log_out_all()
    case.login()
    case.exceed_the_limit()
    (tmp_path / "sesiones.log").write_text(service.log)
    lines = [orjson.loads(line) for line in service.log.splitlines()]
    ended = [line for line in lines if line.get("reason") == "logout_all"][-1]
    section = PAGE.partition("## What the log says")[2]
    examples = re.findall(r"^jq .*$", section, re.MULTILINE)
    assert len(examples) > 5
    for example in examples:
        command = (
            example.replace("ses_#1a2b3c4d", ended["token"])
            .replace("29577677850512", str(ended["ID_Sesion"]))
            .replace("2026-11-27T10:03", ended["time"][:16])
        )
        found = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert found.stdout, command
