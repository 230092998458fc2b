"""Bytes to values: what JSON, forms and the fields of a session let through."""

import json
import re
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesiones.http import requests
from sesiones.http.problems import Problem
from sesiones.policy import SessionPolicy
from sesiones.sesion import INT_MAX

TOKEN = "ses_" + "A" * 45
OBJECT: dict[str, Any] = {
    "ID_Sesion": 4097,
    "ID_Usuario": 7,
    "Token_Sesion": TOKEN,
    "Fecha_Inicio": 1_700_000_000,
    "Fecha_Expiracion": 1_700_001_800,
    "Estado_Sesion": 1,
    "Ultima_Actividad": 1_700_000_100,
    "Dispositivo": "portátil",
}
INTEGERS = [campo for campo, value in OBJECT.items() if isinstance(value, int)]

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)


def outcome(call: Callable[[], object]) -> object:
    """What the call returns, or the Problem that it raises."""
    try:
        return call()
    except Problem as problem:
        return problem


def refused(call: Callable[[], object]) -> Problem:
    problem = outcome(call)
    assert isinstance(problem, Problem)
    return problem


def status(call: Callable[[], object]) -> int:
    """Of the Problem that the call raises; 200 when it raises none."""
    problem = outcome(call)
    return problem.status if isinstance(problem, Problem) else 200


def bad_fields(call: Callable[[], object]) -> list[str]:
    """The fields that a 422 names, each with a reason."""
    problem = refused(call)
    assert problem.status == 422
    assert all(motivo for _, motivo in problem.errores)
    return [campo for campo, _ in problem.errores]


POLICY = SessionPolicy()


def create(body: bytes) -> tuple[int, str]:
    return requests.creation(requests.parse_json(body), POLICY, form=False)[:2]


def create_form(body: bytes) -> tuple[int, str]:
    return requests.creation(requests.parse_form(body), POLICY, form=True)[:2]


# JSON


def nested(depth: int) -> bytes:
    """Arrays in arrays."""
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"{",
        b"nada",
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": 1}x',
        b'{"a": 1} {"a": 1}',
        b'{"a": 1}\x00',
        b'{"a": 1}\x0b',
        b'{"a": 1}\xc2\xa0',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 01}',
        b'{"a": +1}',
        b'{"a": .5}',
        b'{"a": 1.}',
        b'{"a": 0x10}',
        b'{"a": 1_000}',
        '{"a": ٣}'.encode(),
        b'{"a": 1 /* no */}',
        b'{"a": "\n"}',
        b'{"a": "\x00"}',
        b'{"a": "\\x41"}',
        b'{"a": "\\u00g0"}',
        b'{"a": "\xff"}',
        b'{"a": "\xc0\x80"}',  # an overlong NUL
        b'{"a": "\xed\xa0\x80"}',  # a surrogate in UTF-8
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-16-le"),
        '{"a": 1}'.encode("utf-32"),
        b'{"ID_Usuario": 1, "ID_Usuario": 1}',
        b'{"ID_Usuario": 1, "ID_\\u0055suario": 2}',
        b'{"Dispositivo": "d", "a": 1, "Dispositivo": "d"}',
        b'{"Token_Sesion": "t", "Token_Sesion": null}',
        b'{"a": ' + b"[" * 8000,
        b'{"a": ' + b"[" * 8000 + b"]" * 8000 + b"}",
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b'{"a":' + nested(requests.JSON_DEPTH_MAX) + b"}",
        b"[]",
        b'[{"a": 1}]',
        b'"a"',
        b"1",
        b"null",
        b"true",
    ],
)
def test_body_that_is_no_json_object_is_a_400(body: bytes) -> None:
    assert refused(lambda: requests.parse_json(body)).status == 400


@pytest.mark.parametrize(
    "value",
    [
        nested(requests.JSON_DEPTH_MAX - 1),
        b"[" + b"{}," * 2000 + b"{}]",
        b'"%b"' % (b"[" * 5000),
        b'"%b"' % (b'\\"[{\\\\' * 1000),
        b'["%b", "%b"]' % (b"[" * 600, b"{" * 600),
    ],
)
def test_brackets_that_are_not_nested_deep_are_read(value: bytes) -> None:
    read = requests.parse_json(b'{"a": ' + value + b"}")["a"]
    assert read == json.loads(value, object_pairs_hook=tuple)


@given(st.dictionaries(st.text(), JSON))
def test_any_json_object_is_read(members: dict[str, Any]) -> None:
    for ascii_only in True, False:
        body = json.dumps(members, ensure_ascii=ascii_only).encode("utf-8", "replace")
        read = requests.parse_json(body)
        assert read.keys() == members.keys()


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_or_a_400(body: bytes) -> None:
    assert status(lambda: requests.parse_json(body)) in (200, 400)


# Integers


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("-0", 0), ("7", 7), (str(INT_MAX), INT_MAX)],
)
def test_json_integer_is_read(text: str, value: int) -> None:
    ID_Usuario, _ = create(b'{"ID_Usuario": %s, "Dispositivo": "d"}' % text.encode())
    assert (ID_Usuario, type(ID_Usuario)) == (value, int)


@pytest.mark.parametrize(
    "text",
    [
        "true",
        "false",
        "null",
        "1.0",
        "1e3",
        "1E0",
        "0.0",
        "-0.0",
        "1e400",
        '"1"',
        '""',
        "[]",
        "[1]",
        "{}",
        "-1",
        str(2**53),
        str(2**63),
        str(2**64),
        str(2**64 + 1),
        "9" * 4500,  # int() refuses more than 4300 digits
        "9" * 15_000,
        "-" + "9" * 4500,
    ],
)
def test_other_json_value_than_an_integer_is_a_bad_field(text: str) -> None:
    body = b'{"ID_Usuario": %s, "Dispositivo": "d"}' % text.encode()
    assert bad_fields(lambda: create(body)) == ["ID_Usuario"]


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("7", 7), (str(INT_MAX), INT_MAX)])
def test_form_integer_is_read(text: str, value: int) -> None:
    assert create_form(f"ID_Usuario={text}&Dispositivo=d".encode()) == (value, "d")


@pytest.mark.parametrize(
    "text",
    [
        *("", "00", "01", "007", "-0", "-1", "+1", " 1", "1 ", "1\n", "1\x00", "1.0", "1e3", "0x1"),
        *("1_0", "1,0", "true", "٣", "1٣", "\uff17", "²", "Ⅷ", str(2**53), str(2**64), "9" * 4500),
    ],
)
def test_other_spelling_than_a_form_integer_is_a_bad_field(text: str) -> None:
    body = f"ID_Usuario={quote(text)}&Dispositivo=d".encode()
    assert bad_fields(lambda: create_form(body)) == ["ID_Usuario"]


def test_plus_in_a_form_is_a_space() -> None:
    assert bad_fields(lambda: create_form(b"ID_Usuario=+1&Dispositivo=d")) == ["ID_Usuario"]


@given(st.integers() | st.integers(-1, 2**54) | st.sampled_from([INT_MAX, INT_MAX + 1]))
def test_json_integer_is_good_within_its_bounds_alone(value: int) -> None:
    expected = 200 if 0 <= value <= INT_MAX else 422
    body = json.dumps({"ID_Usuario": value, "Dispositivo": "d"}).encode()
    assert status(lambda: create(body)) == expected
    form = f"ID_Usuario={value}&Dispositivo=d".encode()
    assert status(lambda: create_form(form)) == expected


@given(st.text() | st.from_regex(r"\A[0-9]{1,20}\Z") | st.from_regex(r"\A\d{1,17}\n?\Z"))
def test_form_integer_is_good_in_plain_decimal_alone(text: str) -> None:
    canonical = re.fullmatch(r"0|[1-9][0-9]*", text, re.ASCII) and int(text) <= INT_MAX
    members = {"ID_Usuario": text, "Dispositivo": "d"}
    assert status(lambda: requests.creation(members, POLICY, form=True)) == (
        200 if canonical else 422
    )


def test_each_integer_has_its_bounds() -> None:
    for campo in INTEGERS:
        low = 1 if campo == "ID_Sesion" else 0
        high = 1 if campo == "Estado_Sesion" else INT_MAX
        for value in low, high:
            given_ = requests.update(OBJECT | {campo: value}, form=False)
            assert getattr(given_, campo) == value
        for value in low - 1, high + 1, bool(low):
            members = OBJECT | {campo: value}
            assert bad_fields(partial(requests.update, members, form=False)) == [campo]


# Dispositivo

ASTRAL = "😀"


@pytest.mark.parametrize(
    "device",
    [
        "d",
        " ",
        "d" * 512,
        "ñ" * 512,
        ASTRAL * 512,
        "\u200b\u2028\u2029\u202e\ufeff",  # odd, but no control characters (Cc)
        "\ufffe\uffff\U0010ffff",
        "a\u0301",
        '"\\<>&+%',
    ],
)
def test_device_is_read(device: str) -> None:
    members = {"ID_Usuario": 7, "Dispositivo": device}
    for ascii_only in True, False:
        assert create(json.dumps(members, ensure_ascii=ascii_only).encode()) == (7, device)
    assert create_form(urlencode(members).encode()) == (7, device)


@pytest.mark.parametrize(
    "device", ["", "d" * 513, ASTRAL * 513, "\x00", "a\nb", "a\tb", "\x7f", "\x85", "\x9f"]
)
def test_bad_device_is_a_bad_field(device: str) -> None:
    members = {"ID_Usuario": 7, "Dispositivo": device}
    assert bad_fields(lambda: create(json.dumps(members).encode())) == ["Dispositivo"]
    assert bad_fields(lambda: create_form(urlencode(members).encode())) == ["Dispositivo"]


@pytest.mark.parametrize("escaped", [r"\ud800", r"\udfff", r"\ude00\ud83d", r"a\ud83d", r"\u0000"])
def test_escape_that_is_no_character_is_a_bad_field(escaped: str) -> None:
    body = b'{"ID_Usuario": 7, "Dispositivo": "%s"}' % escaped.encode()
    assert bad_fields(lambda: create(body)) == ["Dispositivo"]


def test_escaped_surrogate_pair_is_one_character() -> None:
    body = rb'{"ID_Usuario": 7, "Dispositivo": "%s"}' % (rb"\ud83d\ude00" * 512)
    assert create(body) == (7, ASTRAL * 512)


@pytest.mark.parametrize("value", [None, True, 1, 1.5, [], ["d"], {}])
def test_device_that_is_no_string_is_a_bad_field(value: object) -> None:
    body = json.dumps({"ID_Usuario": 7, "Dispositivo": value}).encode()
    assert bad_fields(lambda: create(body)) == ["Dispositivo"]


@given(st.text(st.characters(exclude_categories=[]), max_size=8))
def test_device_is_good_by_its_characters_alone(device: str) -> None:
    body = json.dumps({"ID_Usuario": 7, "Dispositivo": device}).encode()
    # As it is read: an escaped pair of surrogates is one character.
    device = json.loads(body)["Dispositivo"]
    if not device or any(unicodedata.category(c) in ("Cc", "Cs") for c in device):
        assert bad_fields(lambda: create(body)) == ["Dispositivo"]
    else:
        assert create(body) == (7, device)


# Every bad field at once


@pytest.mark.parametrize("form", [False, True])
def test_every_missing_field_is_named(form: bool) -> None:
    assert bad_fields(lambda: requests.update({}, form=form)) == list(OBJECT)
    assert bad_fields(lambda: requests.creation({}, POLICY, form=form)) == [
        "ID_Usuario",
        "Dispositivo",
    ]


@given(st.data())
def test_exactly_the_bad_fields_are_named(data: st.DataObject) -> None:
    spoiled = data.draw(st.sets(st.sampled_from(list(OBJECT))))
    members = dict(OBJECT)
    for campo in spoiled:
        spoil = data.draw(st.sampled_from(["missing", "null", "list", "boolean", "float"]))
        if spoil == "missing":
            del members[campo]
        else:
            members[campo] = {"null": None, "list": [], "boolean": True, "float": 1.0}[spoil]
    if spoiled:
        expected = [campo for campo in OBJECT if campo in spoiled]
        assert bad_fields(lambda: requests.update(members, form=False)) == expected
    else:
        assert json.loads(requests.update(members, form=False).to_json()) == OBJECT


@given(st.dictionaries(st.text().filter(lambda name: name not in OBJECT), JSON))
def test_unknown_members_are_ignored(extra: dict[str, Any]) -> None:
    assert json.loads(requests.update(OBJECT | extra, form=False).to_json()) == OBJECT


def test_members_of_an_unknown_member_may_have_any_name() -> None:
    extra = b'"extra": [{"ID_Usuario": 1, "ID_Usuario": 2}, {"Dispositivo": {}, "Dispositivo": []}]'
    assert create(b'{"ID_Usuario": 7, %b, "Dispositivo": "d"}' % extra) == (7, "d")


def test_whole_session_is_read_from_a_form() -> None:
    members = requests.parse_form(urlencode(OBJECT).encode())
    assert json.loads(requests.update(members, form=True).to_json()) == OBJECT


def test_digits_in_a_json_string_are_no_integer() -> None:
    members = {campo: str(value) for campo, value in OBJECT.items()}
    assert bad_fields(lambda: requests.update(members, form=False)) == INTEGERS


# Forms and queries


@pytest.mark.parametrize(
    ("text", "members"),
    [
        (b"", {}),
        (b"&&", {}),
        (b"a", {"a": ""}),
        (b"a=", {"a": ""}),
        (b"=a", {"": "a"}),
        (b"a=b=c", {"a": "b=c"}),
        (b"a=1;b=2", {"a": "1;b=2"}),  # WHATWG URL, 5.1: only & separates
        (b"a=x+y%2B%26", {"a": "x y+&"}),
        (b"%61=1", {"a": "1"}),
        (b"a=%25zz&%25=50%25", {"a": "%zz", "%": "50%"}),
        (b"a=%c3%B1+%2b", {"a": "ñ +"}),
        (b"&a=1&&b=2&", {"a": "1", "b": "2"}),
        (b"&=&", {"": ""}),
        (b"a=%C3%B1&b=\xc3\xb1", {"a": "ñ", "b": "ñ"}),
    ],
)
def test_form_is_read(text: bytes, members: dict[str, str]) -> None:
    assert requests.parse_form(text) == members


@pytest.mark.parametrize(
    "text",
    [
        *(b"ID_Usuario=1&ID_Usuario=1", b"Token_Sesion&Token_Sesion="),
        *(b"Dispositivo=d&a=1&D%69spositivo=d", b"a=%FF", b"%FF=a", b"a=\xff", b"a=%ED%A0%80"),
        *(b"a=50%", b"a=%", b"%", b"a=%zz", b"a=%4", b"a=%4&b=1", b"a=%4z", b"a=%z4", b"a=%%41"),
        *(b"a=%u1234", b"a=%U0041", b"a=%+1", b"a=% 1", b"a=%-1", b"a=%0x41", b"a=%\xc3\xb1"),
        *(b"a=%\xef\xbc\x91\xef\xbc\x91", b"%zz=a", b"otro=50%&ID_Usuario=1", b"a=1;b=%"),
    ],
)
def test_malformed_form_is_a_400(text: bytes) -> None:
    assert refused(lambda: requests.parse_form(text)).status == 400


@given(st.dictionaries(st.text(), st.text()))
def test_any_form_is_read(members: dict[str, str]) -> None:
    assert requests.parse_form(urlencode(members).encode()) == members


@given(st.binary())
def test_any_bytes_are_a_form_or_a_400(text: bytes) -> None:
    assert status(lambda: requests.parse_form(text)) in (200, 400)


# Token_Sesion of a DELETE


@pytest.mark.parametrize(
    ("body", "query"),
    [
        ({"Token_Sesion": "t"}, {}),
        ({}, {"Token_Sesion": "t"}),
        ({"Token_Sesion": "t"}, {"Token_Sesion": "t"}),
        ({"Token_Sesion": "t", "otro": 1}, {"otro": "2"}),
    ],
)
def test_token_sesion_is_read_from_body_query_or_both(
    body: dict[str, Any], query: dict[str, Any]
) -> None:
    assert requests.designation(body, query) == "t"


@pytest.mark.parametrize(
    ("body", "query"),
    [
        ({}, {}),
        ({"token_sesion": "t"}, {"TOKEN_SESION": "t"}),
        ({"Token_Sesion": "t"}, {"Token_Sesion": "u"}),
        ({"Token_Sesion": "t"}, {"Token_Sesion": ""}),
        ({"Token_Sesion": None}, {"Token_Sesion": "t"}),
        ({"Token_Sesion": 1}, {"Token_Sesion": "1"}),
        ({"Token_Sesion": None}, {}),
        ({"Token_Sesion": 1}, {}),
        ({"Token_Sesion": ["t"]}, {}),
    ],
)
def test_missing_or_different_token_sesion_is_a_422(
    body: dict[str, Any], query: dict[str, Any]
) -> None:
    assert bad_fields(lambda: requests.designation(body, query)) == ["Token_Sesion"]
