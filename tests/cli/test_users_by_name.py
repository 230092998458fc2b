"""`sesiones users --name`: sessions by the name that the log gives their tokens."""

import orjson
import pytest
from redis import Redis

from sesiones import tokens
from sesiones.cli.exits import Exit
from sesiones.sesion import Sesion
from tests.harness.command_line import CommandLine
from tests.harness.records import digest, index_key, session_key, write_record

PLACE = "prefix sesiones, database 0"


def name_of(sesion: Sesion) -> str:
    return f"ses_#{tokens.fingerprint(sesion.Token_Sesion)}"


def namesake(own: "Redis", sesion: Sesion, number: int, start: str = "") -> str:
    """Another live session of the user, with a digest that begins as the session's does. Without
    ``start``, it has the same name in the log."""
    key = session_key(sesion.Token_Sesion)
    own_digest = digest(sesion.Token_Sesion)
    other = (start or own_digest[:6]).ljust(22, "A")
    copy = key.removesuffix(own_digest) + other
    own.copy(key, copy)
    write_record(own, copy, id=number)
    own.zadd(index_key(sesion.ID_Usuario), {other: sesion.Fecha_Expiracion})
    return copy


@pytest.mark.parametrize("written", ["ses_#{}", "#{}", "{}"])
def test_session_is_found_by_its_name_in_the_log(sesiones: CommandLine, written: str) -> None:
    made = sesiones.create(*range(40))
    for sesion in made[:2]:
        name = written.format(tokens.fingerprint(sesion.Token_Sesion))
        code, out, errors = sesiones.users("--name", name)
        assert (code, errors) == (0, "")
        title, line = out.splitlines()
        assert title == f"{name_of(sesion)}: 1 live session ({PLACE})"
        assert line.startswith(f"user {sesion.ID_Usuario}  {sesion.ID_Sesion}  {name_of(sesion)}  ")
        (listed,) = orjson.loads(sesiones.users("--json", "--name", name)[1])
        assert listed == sesion._asdict() | {"Token_Sesion": name_of(sesion)}


def test_inactive_session_is_found_by_its_name(sesiones: CommandLine, own: "Redis") -> None:
    (sesion,) = sesiones.create(7)
    write_record(own, session_key(sesion.Token_Sesion), estado=0)
    assert sesiones.listed("--name", name_of(sesion)) == {sesion.ID_Sesion}


def test_name_of_no_live_session_lists_none(sesiones: CommandLine, own: "Redis") -> None:
    assert "there is nothing at all" in sesiones.users("--name", "ses_#00000000")[2]
    sesiones.create(7)
    code, out, errors = sesiones.users("--name", "ses_#00000000")
    assert (code, out, errors) == (0, f"ses_#00000000: 0 live sessions ({PLACE})\n", "")
    code, out, _ = sesiones.users("--name", "ses_#00000000", "--end")
    assert (code, out) == (Exit.NO, f"0 sessions ended ({PLACE})\n")


def test_end_by_name_ends_that_session_alone(sesiones: CommandLine, own: "Redis") -> None:
    one, other = sesiones.create(7, 7)
    code, out, errors = sesiones.users("--name", name_of(one), "--end")
    assert (code, out) == (0, f"1 session ended ({PLACE})\n")
    ended = f"ended session {one.ID_Sesion} of user 7, {name_of(one)}: operator by command line\n"
    assert errors.endswith(ended)
    assert sesiones.listed("7") == {other.ID_Sesion}
    assert sesiones.users("--name", name_of(one), "--end")[0] == Exit.NO


def test_sessions_of_one_name_are_all_listed_and_none_ends_unless_it_is_named(
    sesiones: CommandLine, own: "Redis"
) -> None:
    (sesion,) = sesiones.create(7)
    copy = namesake(own, sesion, 5)
    # The log's name is the first 32 bits: the sixth character of the digest is in it by a third.
    sixth = next(
        each
        for each in "Aw"
        if tokens.fingerprint_of_digest(digest(sesion.Token_Sesion)[:5] + each + "AA")
        != name_of(sesion)[5:]
    )
    namesake(own, sesion, 6, digest(sesion.Token_Sesion)[:5] + sixth)
    assert sesiones.listed("--name", name_of(sesion)) == {sesion.ID_Sesion, 5}
    code, out, errors = sesiones.users("--name", name_of(sesion), "--end")
    assert code == Exit.NO
    assert out.startswith(f"{name_of(sesion)}: 2 live sessions (")
    assert errors.endswith("nothing has ended: say which one, with --end ID_SESION\n")
    assert own.exists(copy)
    assert sesiones.users("--name", name_of(sesion), "--end", "9")[0] == Exit.NO
    code, out, _ = sesiones.users("--name", name_of(sesion), "--end", "5", "--json")
    assert (code, out) == (0, '{"Sesiones_Eliminadas":1}\n')
    assert not own.exists(copy)
    assert own.exists(session_key(sesion.Token_Sesion))


def test_session_that_its_index_has_lost_is_found_by_its_name(
    sesiones: CommandLine, own: "Redis"
) -> None:
    (sesion,) = sesiones.create(7)
    own.delete(index_key(7))
    assert sesiones.listed("--name", name_of(sesion)) == {sesion.ID_Sesion}
    assert sesiones.users("--name", name_of(sesion), "--end")[0] == Exit.NO
    code, out, _ = sesiones.users("--name", name_of(sesion), "--end", "--deep")
    assert (code, out) == (0, f"1 session ended ({PLACE})\n")
    assert not own.exists(session_key(sesion.Token_Sesion))


def test_odd_keys_are_no_sessions_of_a_name(sesiones: CommandLine, own: "Redis") -> None:
    (sesion,) = sesiones.create(7)
    key = session_key(sesion.Token_Sesion)
    base, own_digest = key[:-22], key[-22:]
    own.set(base + own_digest[:21] + "é", "x")
    own.set(base + own_digest[:6] + "B" * 16, "x")  # of another type
    own.hset(base + own_digest[:6] + "C" * 16, "1", "no session")
    own.hset(base + own_digest[:6] + "D" * 16, "2", "no field 1")
    assert sesiones.listed("--name", name_of(sesion)) == {sesion.ID_Sesion}
