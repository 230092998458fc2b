"""`sesiones stats`: how many sessions and users there are."""

import orjson
import pytest
from redis import Redis

from sesiones.cli.exits import Exit
from tests.harness.command_line import CommandLine
from tests.harness.ports import free_port
from tests.harness.records import age, digest, index_key, session_key, write_record
from tests.harness.redis_server import RedisServer
from tests.harness.stores import replica_of


def counts(sesiones: CommandLine, *words: str) -> dict[str, int | None]:
    code, out, _ = sesiones("stats", "--json", *words)
    assert code == 0
    members: dict[str, int | None] = orjson.loads(out)
    return members


def test_stats_count_users_live_sessions_and_active_ones(
    sesiones: CommandLine, own: "Redis"
) -> None:
    made = sesiones.create(7, 7, 7, 8, 9)
    write_record(own, session_key(made[1].Token_Sesion), estado=0)
    oldest = age(own, made[3], 600)
    assert counts(sesiones) == {
        "users": 3,
        "sessions": 5,
        "active": 4,
        "oldest": oldest.Fecha_Inicio,
    }
    code, out, errors = sesiones("stats")
    assert (code, errors) == (0, "")
    first, *lines = out.splitlines()
    assert first == "prefix sesiones, database 0"
    assert lines[:2] == ["users     3", "sessions  5, of them 1 inactive"]
    assert lines[2].startswith("oldest    20")


def test_expired_and_malformed_sessions_are_not_counted(
    sesiones: CommandLine, own: "Redis"
) -> None:
    _, expired, malformed = (each.Token_Sesion for each in sesiones.create(7, 8, 9))
    own.expireat(session_key(expired), own.time()[0] + 1)
    own.zadd(index_key(8), {digest(expired): 1})
    write_record(own, session_key(malformed), estado=2)
    own.set(index_key(10), "of another type")
    own.set(session_key(malformed)[:-1] + "é", "x")
    own.pexpire(session_key(expired), 1)
    found = counts(sesiones)
    assert (found["users"], found["sessions"]) == (2, 1)  # the index of user 9 is whole


def test_stats_of_nothing_warn_of_the_prefix(sesiones: CommandLine, own: "Redis") -> None:
    code, out, errors = sesiones("stats")
    assert code == 0
    assert out.endswith("users     0\nsessions  0, of them 0 inactive\noldest    none\n")
    assert errors.startswith("sesiones: warning: prefix sesiones, database 0: there is nothing")
    sesiones.create(7)
    assert counts(sesiones, "--key-prefix", "otros")["oldest"] is None
    assert counts(sesiones)["sessions"] == 1


def test_stats_count_many_pages_of_keys(sesiones: CommandLine) -> None:
    sesiones.create(*range(1500))
    found = counts(sesiones)
    assert (found["users"], found["sessions"]) == (1500, 1500)


def test_stats_of_a_replica_are_refused(sesiones: CommandLine) -> None:
    with (
        RedisServer(port=str(free_port())) as master,
        replica_of(master, appendonly="no") as replica,
    ):
        sesiones.at(master.url).create(7)
        code, out, errors = sesiones.at(replica.url)("stats")
    assert (code, out) == (Exit.UNAVAILABLE, "")
    assert errors == "sesiones: the server is a replica\n"


def test_stats_without_redis_are_unavailable(sesiones: CommandLine) -> None:
    assert sesiones.at("redis://127.0.0.1:1")("stats")[0] == Exit.UNAVAILABLE


@pytest.mark.parametrize("pages", [1, 3])
def test_progress_is_shown_where_standard_error_is_a_terminal(
    sesiones: CommandLine, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    sesiones.create(*range(pages * 400))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    errors = sesiones("stats")[2]
    assert errors.count("keys") >= pages
    assert errors.endswith("\r\x1b[K")
