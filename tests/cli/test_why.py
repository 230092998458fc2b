"""`sesiones why`: whom it takes, what it prints, and what it says when nothing is known."""

import asyncio
import io
import re
from contextlib import aclosing

import orjson
import pytest
from redis import Redis

from sesiones import tokens
from sesiones.cli.exits import Exit
from sesiones.cli.moments import distance
from sesiones.cli.why import REASONS
from sesiones.metrics import ENDED
from sesiones.sesion import Sesion
from tests.harness.command_line import CommandLine
from tests.harness.ports import free_port
from tests.harness.records import NEIGHBOUR, base
from tests.harness.redis_server import RedisServer
from tests.harness.stores import open_store, replica_of

PLACE = "prefix sesiones, database 0"
DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ \(\d+ s ago\)"


@pytest.fixture(autouse=True)
def why_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESIONES_WHY_SECONDS", "600")


@pytest.fixture
def ended(sesiones: CommandLine) -> Sesion:
    """A session that an operator has ended, beside a live one and a neighbour's."""
    one, _, _ = sesiones.create(7, 7, NEIGHBOUR)
    sesiones.users("7", "--end", str(one.ID_Sesion))
    return one


def name(sesion: Sesion) -> str:
    return f"ses_#{tokens.fingerprint(sesion.Token_Sesion)}"


def test_user_has_a_line_for_each_session(sesiones: CommandLine, ended: Sesion) -> None:
    code, out, errors = sesiones("why", "7")
    title, live, gone = out.splitlines()
    assert (code, errors) == (0, "")
    assert title == f"user 7: 1 live session, 1 gone ({PLACE})"
    assert re.fullmatch(
        rf"session \d+ of user 7, ses_#[0-9a-f]{{8}}: live and active, last used {DATE}, "
        r"expires .*Z \(in (29|30) min\), device of 7",
        live,
    )
    assert re.fullmatch(
        rf"session {ended.ID_Sesion} of user 7, {name(ended)}: ended {DATE}, operator: "
        rf"{REASONS['operator']}; last used {DATE}; asked for by command line",
        gone,
    )


@pytest.mark.parametrize("way", ["argument", "standard input", "name"])
def test_token_is_taken_in_each_way_and_never_shown(
    sesiones: CommandLine, ended: Sesion, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ended.Token_Sesion}\n"))
    argument = {"argument": ended.Token_Sesion, "standard input": "-", "name": name(ended)}[way]
    code, out, errors = sesiones("why", argument)
    assert (code, errors) == (0, "")
    assert out.startswith(f"token {name(ended)}: 0 live sessions, 1 gone ({PLACE})\n")
    assert out.count(f"session {ended.ID_Sesion} of user 7") == 1
    assert ended.Token_Sesion not in out


def test_live_token_has_another_cause_of_its_401(sesiones: CommandLine) -> None:
    (one,) = sesiones.create(7)
    for whose in one.Token_Sesion, name(one):
        code, out, errors = sesiones("why", whose)
        assert (code, out.count("live and active")) == (0, 1)
        assert "A 401 for a session that is live and active has another cause" in errors


def test_json_has_live_sessions_and_those_that_are_gone(
    sesiones: CommandLine, ended: Sesion
) -> None:
    code, out, errors = sesiones("why", "7", "--json")
    live, gone = orjson.loads(out)
    assert (code, errors) == (0, "")
    assert (live["state"], live["ID_Usuario"]) == ("active", 7)
    assert gone == {
        "state": "ended",
        "when": gone["when"],
        "reason": "operator",
        "actor": "command line",
        "ID_Sesion": ended.ID_Sesion,
        "ID_Usuario": 7,
        "Token_Sesion": name(ended),
        "Ultima_Actividad": ended.Ultima_Actividad,
    }
    code, out, _ = sesiones("why", "8", "--json")
    assert (code, out) == (Exit.NO, "[]\n")


def test_unknown_is_said_with_what_it_can_mean(
    sesiones: CommandLine, ended: Sesion, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tokens.make(9)
    for words in ["9"], [token], [token, "--deep"], ["ses_#00000000"]:
        code, out, errors = sesiones("why", *words)
        assert code == Exit.NO
        assert f": 0 live sessions, 0 gone ({PLACE})\n" in out
        assert "nothing is known of a session that is gone" in errors
        assert "more than 600 seconds ago (SESIONES_WHY_SECONDS)" in errors
        assert ("--deep also finds" in errors) == (words == [token])
        assert token not in out + errors
    monkeypatch.delenv("SESIONES_WHY_SECONDS")
    assert "SESIONES_WHY_SECONDS is 0 here" in sesiones("why", "9")[2]


def test_user_with_live_sessions_alone_is_told_what_is_not_known(sesiones: CommandLine) -> None:
    sesiones.create(7)
    code, _, errors = sesiones("why", "7")
    assert code == 0
    assert "nothing is known of a session that is gone" in errors


def test_empty_prefix_is_a_warning(sesiones: CommandLine) -> None:
    code, _, errors = sesiones("why", "7")
    assert code == Exit.NO
    assert errors.startswith(f"sesiones: warning: {PLACE}: there is nothing at all")


@pytest.mark.parametrize(
    "bad", ["", "x", "ses_", "ses_#5a2b3c4", f"ses_{'A' * 44}", "-1", "1.0", "9007199254740992"]
)
def test_bad_argument_is_a_usage_error_that_does_not_repeat_it(
    sesiones: CommandLine, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(bad))
    code, out, errors = sesiones("why", "-")
    assert (code, out) == (Exit.USAGE, "")
    assert errors.startswith("sesiones: why takes an ID_Usuario, a token")
    assert len(bad) < 6 or bad not in errors


def test_redis_that_is_away_is_its_own_exit_code(sesiones: CommandLine) -> None:
    assert sesiones.at("redis://127.0.0.1:1")("why", "7")[0] == Exit.UNAVAILABLE


def test_trace_of_a_newer_version_is_shown(sesiones: CommandLine, own: "Redis") -> None:
    own.zadd(f"{base(7)}w", {f"{'A' * 22} later 7 12 - a new actor": 1795774864})
    _, out, _ = sesiones("why", "7")
    assert "session 12 of user 7, ses_#00000000: ended 2026-11-27 10:21:04Z" in out
    assert out.endswith(", later: of a newer version; asked for by a new actor\n")


def test_every_reason_of_the_metric_has_words() -> None:
    assert set(ENDED.values) == REASONS.keys() - {"expired"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s ago"), (-1, "1 s ago"), (-119, "119 s ago"), (-120, "2 min ago"), (7300, "in 2 h")],
)
def test_distance_in_time(monkeypatch: pytest.MonkeyPatch, seconds: int, text: str) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert distance(1_000_000_000 + seconds) == text


def test_each_kind_of_deployment_answers(
    deployment_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def end() -> Sesion:
        async with aclosing(open_store(deployment_url, why_seconds=600)) as store:
            made = await store.create(7, "laptop")
            await store.end(made.Token_Sesion, made.Token_Sesion)
            return made

    ended = asyncio.run(end())
    sesiones = CommandLine(deployment_url, capsys)
    for words in ["7"], ["7", "--deep"], [ended.Token_Sesion], [name(ended)]:
        code, out, _ = sesiones("why", *words)
        assert (code, out.count(f"session {ended.ID_Sesion} of user 7")) == (0, 1), words


def test_replica_is_not_asked(sesiones: CommandLine) -> None:
    """It may lack what has ended last."""
    with (
        RedisServer(port=str(free_port())) as master,
        replica_of(master, appendonly="no") as replica,
    ):
        (one,) = sesiones.at(master.url).create(7)
        for words in (["7"], [one.Token_Sesion], [one.Token_Sesion, "--deep"], [name(one)]):
            assert sesiones.at(replica.url)("why", *words)[:2] == (Exit.UNAVAILABLE, "")
