"""The scenario of the clocks fails where it should."""

from pathlib import Path

import pytest

from scripts.chaos import clocks

pytestmark = pytest.mark.slow

needs_faketime = pytest.mark.skipif(clocks.library() is None, reason="libfaketime is not installed")

NAIVE = """
import hashlib, os
from sesiones.store import scripts

create = scripts.CREATE
now = "redis.call('TIME')[1])"
create.source = create.source.replace(now, f"{now} + ({int(os.environ['FAKETIME'][:-1])})", 1)
create.sha = hashlib.sha1(create.source.encode()).hexdigest()
"""
"""Makes a node that goes by its own clock when it creates a session."""


@needs_faketime
def test_a_node_that_goes_by_its_own_clock_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NAIVE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    in_force, same = clocks.play(True)
    assert in_force.met
    assert not same.met
    assert '"Fecha_Inicio":+0 s' in same.measured
    assert '"Fecha_Inicio":+300 s' in same.measured


@needs_faketime
def test_clocks_that_are_not_off_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "OFFSETS", (0, 0, 0))
    in_force, same = clocks.play(True)
    assert not in_force.met
    assert same.met


def test_only_what_may_differ_is_left_out() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 11:50:07 GMT\r\nx-id-sesion: 6147\r\n\r\n"
        b'{"ID_Sesion":6147,"ID_Usuario":77,"Token_Sesion":"ses_' + b"a" * 44 + b'-",'
        b'"Fecha_Inicio":1795434549,"Fecha_Expiracion":1795434551,"Dispositivo":"d"}'
    )
    names = {b"77": b"USER"}
    assert clocks.plain(answer, 1795434548, names) == (
        b"HTTP/1.1 200 OK\r\nx-id-sesion: SESSION 2\r\n\r\n"
        b'{"ID_Sesion":SESSION 2,"ID_Usuario":USER,"Token_Sesion":"TOKEN 1",'
        b'"Fecha_Inicio":+1 s,"Fecha_Expiracion":+3 s,"Dispositivo":"d"}'
    )
    # Another session's name, or another second, is another answer.
    other = answer.replace(b"6147", b"6148")
    assert clocks.plain(other, 1795434548, names) != clocks.plain(answer, 1795434548, names)
    assert clocks.plain(answer, 1795434549, names) != clocks.plain(answer, 1795434548, names)
