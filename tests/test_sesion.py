"""The session object: its text shows no token, and copies keep the token."""

import copy
import logging
import pickle
import pprint
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
import pytest

from sesiones import Sesion, tokens
from sesiones.sesion import BOUNDS


def test_every_integer_field_has_bounds() -> None:
    integers = [name for name, kind in Sesion.__annotations__.items() if kind is int]
    assert integers == list(BOUNDS)


class Held(NamedTuple):
    sesion: Sesion


@dataclass
class Kept:
    sesion: Sesion


def test_no_text_of_a_session_shows_its_token(caplog: pytest.LogCaptureFixture) -> None:
    token = tokens.make(7)
    sesion = Sesion(1, 7, token, 1, 2, 1, 1, "laptop")
    logging.getLogger("application").error("%s %r", sesion, [sesion])
    texts = [
        *(repr(sesion), str(sesion), f"{sesion} {sesion!s} {sesion!r}"),
        *(str([sesion]), str({"a": sesion}), repr(Held(sesion)), repr(Kept(sesion))),
        *(pprint.pformat(sesion, width=1), caplog.text, repr(sesion._replace(ID_Usuario=8))),
    ]
    for text in texts:
        assert token[6:] not in text
        assert f"Token_Sesion='ses_#{tokens.fingerprint(token)}'" in text
    assert repr(sesion) == (
        f"Sesion(ID_Sesion=1, ID_Usuario=7, Token_Sesion='ses_#{tokens.fingerprint(token)}', "
        "Fecha_Inicio=1, Fecha_Expiracion=2, Estado_Sesion=1, Ultima_Actividad=1, "
        "Dispositivo='laptop')"
    )


@pytest.mark.parametrize("value", [None, 7, "", "secret", "\ud800", "ses_#1a2b3c4", b"secret"])
def test_text_of_a_session_shows_no_other_value_of_its_token(value: Any) -> None:
    shown = repr(Sesion(1, 7, value, 1, 2, 1, 1, "laptop"))
    assert "Token_Sesion='...'" in shown


def test_text_of_a_session_keeps_a_fingerprint() -> None:
    assert "'ses_#1a2b3c4d'" in repr(Sesion(1, 7, "ses_#1a2b3c4d", 1, 2, 1, 1, "laptop"))


def test_copies_of_a_session_keep_its_token() -> None:
    token = tokens.make(7)
    sesion = Sesion(1, 7, token, 1, 2, 1, 1, "laptop")
    assert list(orjson.loads(sesion.to_json())) == list(Sesion._fields)
    for same in (
        *(pickle.loads(pickle.dumps(sesion, protocol)) for protocol in range(6)),
        *(copy.copy(sesion), copy.deepcopy(sesion), Sesion(*sesion), Sesion(**sesion._asdict())),
        Sesion(**orjson.loads(sesion.to_json())),
    ):
        assert same == sesion
        assert type(same) is Sesion
        assert same.Token_Sesion == token
