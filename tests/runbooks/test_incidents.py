"""Incidents: sessions that must end at once, and a wrong prefix."""

import orjson
import pytest

from sesiones import tokens
from sesiones.sesion import Sesion
from tests.harness.service import Service
from tests.harness.stores import KEY, service_variables
from tests.runbooks.machines import Start, now
from tests.runbooks.sessions import create, end, live

pytestmark = [pytest.mark.redis, pytest.mark.slow]


def name_of(sesion: Sesion) -> str:
    return f"ses_#{tokens.fingerprint(sesion.Token_Sesion)}"


def test_stolen_token_is_revoked(start: Start) -> None:
    runbook = start("redis")
    machine = runbook.machines["redis"]
    stolen, named, other = create(machine.url, 7, 7, 8)
    (runbook.folder / "token.txt").write_text(stolen.Token_Sesion)
    with Service(**service_variables(machine.url)) as service:
        runbook.variables["SERVICE_KEY"] = KEY
        runbook("A token is stolen", 0, **{"127.0.0.1:8000": f"127.0.0.1:{service.port}"})
    assert live(machine.url, [stolen, named, other]) == [False, True, True]
    shown = runbook("A token is stolen", 1, **{"ses_#1a2b3c4d": name_of(named)})
    assert shown.count(name_of(named)) == 2
    assert shown.endswith("1 session ended (prefix sesiones, database 0)\n")
    assert live(machine.url, [named, other]) == [False, True]


def test_account_that_was_taken_over_loses_its_sessions(start: Start) -> None:
    runbook = start("redis")
    url = runbook.machines["redis"].url
    made = create(url, 48213, 48213, 8)
    shown = runbook("An account is taken over")
    assert shown.startswith("user 48213: 2 live sessions")
    assert live(url, made) == [False, False, True]


def test_everybody_is_out_and_the_log_says_by_whom(start: Start) -> None:
    runbook = start("redis")
    url = runbook.machines["redis"].url
    before = create(url, 7, 8)
    moment = now().replace("Z", "+00:00")
    after = create(url, 9)
    heading = "Everybody must log in again"
    shown = runbook(heading, 1, **{"2026-11-27T09:00:00+01:00": moment})
    assert shown.startswith("2 live sessions that began before ")
    assert live(url, [*before, *after]) == [False, False, True]
    shown = runbook(heading)
    assert "1 live session (" in shown
    assert "1 session ended (" in shown
    assert live(url, after) == [False]
    log = (runbook.folder / "end-all.log").read_text()
    assert log.count(": operator by command line\n") == 3
    assert log.count(" INFO sesiones.cli: end-all by ") == 2


def test_prefix_that_is_set_back_brings_sessions_back(start: Start) -> None:
    runbook = start("redis")
    url = runbook.machines["redis"].url
    (thiefs,) = create(url, 7)
    # Under the wrong prefix the user logs in and ends all sessions.
    heading = "A wrong prefix or database was deployed"
    mine, other = create(url, 7, 7, key_prefix="wrong")
    end(url, mine, other, key_prefix="wrong")
    create(url, 8, key_prefix="wrong")
    counts = runbook(heading).split("prefix ")
    assert "sessions  1," in counts[1]
    assert "sessions  1," in counts[2]
    assert live(url, [thiefs], key_prefix="wrong") == [False]
    assert live(url, [thiefs]) == [True]  # set back
    runbook(heading, 1)
    assert live(url, [thiefs]) == [False]


def test_session_with_an_abusive_device_is_found_and_ended(start: Start) -> None:
    runbook = start("redis")
    url = runbook.machines["redis"].url
    abusive = "\u202e<script>" + "\U0001f600" * 500
    made = create(url, 48213, 48213, device=abusive)
    number = {"29579227305787": str(made[0].ID_Sesion)}
    assert abusive in runbook("A device has an abusive name", 0, **number)
    assert live(url, made) == [False, True]


def test_log_of_the_command_is_json_where_the_service_logs_json(start: Start) -> None:
    runbook = start("redis")
    create(runbook.machines["redis"].url, 7)
    runbook.variables["SESIONES_LOG_FORMAT"] = "json"
    runbook("Everybody must log in again")
    *_, line = map(orjson.loads, (runbook.folder / "end-all.log").read_text().splitlines())
    assert (line["event"], line["ended"], line["outcome"]) == ("end-all", 1, "done")
