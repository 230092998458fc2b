"""Who is asking: the caller's token and the service keys."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesiones import tokens
from sesiones.http.credentials import ServiceKeys, caller_token

TOKEN = "ses_eQ-01XQr_KJS2gLGQi2jrM8R2FePYHZcuB_y2ywpRWxkI"
RAW = TOKEN.encode()
KEY = b"k" * 32
NEXT_KEY = b"n" * 40

AUTH, X_AUTH = b"authorization", b"x-auth-token"
BASIC = (AUTH, b"Basic dTpw")


@pytest.mark.parametrize(
    "headers",
    [
        [(X_AUTH, RAW)],
        [(AUTH, b"Bearer " + RAW)],
        [(AUTH, b"bearer " + RAW)],
        [(AUTH, b"BEARER " + RAW)],
        [(AUTH, b"bEaReR    " + RAW)],  # RFC 9110, 11.4: one or more spaces
        [BASIC, (X_AUTH, RAW)],  # another scheme does not count
        [(X_AUTH, RAW), BASIC],
        [(b"accept", b"*/*"), (X_AUTH, RAW), (b"cookie", RAW)],
    ],
)
def test_one_well_formed_token_is_the_callers(headers: list[tuple[bytes, bytes]]) -> None:
    assert caller_token(headers) == (TOKEN, True)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [BASIC],
        [(b"cookie", RAW), (b"token", RAW)],
        [(AUTH, RAW)],
        [(AUTH, b"Bearer" + RAW)],
        [(AUTH, b"Bearer-Token " + RAW)],
        [(AUTH, b"Token " + RAW)],
        [(AUTH, b"")],
    ],
)
def test_headers_without_a_credential_are_not_presented(headers: list[tuple[bytes, bytes]]) -> None:
    assert caller_token(headers) == (None, False)


@pytest.mark.parametrize(
    "headers",
    [
        [(X_AUTH, RAW), (X_AUTH, RAW)],
        [(X_AUTH, RAW), (X_AUTH, b"")],
        [(AUTH, b"Bearer " + RAW), (AUTH, b"Bearer " + RAW)],
        [(AUTH, b"Bearer " + RAW), BASIC],
        [BASIC, (AUTH, b"Bearer " + RAW)],
        [(X_AUTH, RAW), (AUTH, b"Bearer " + RAW)],
        [(X_AUTH, RAW), (AUTH, b"Bearer")],
        [(X_AUTH, b""), (AUTH, b"Bearer " + RAW)],
        [(AUTH, b"Bearer")],
        [(AUTH, b"Bearer ")],
        [(AUTH, b"Bearer " + RAW + b"\n")],
        [(AUTH, b"Bearer " + RAW + b" " + RAW)],
        [(AUTH, b"Bearer " + RAW + b", " + RAW)],
        [(AUTH, b"Bearer \t" + RAW)],
        [(AUTH, b'Bearer "' + RAW + b'"')],
    ],
)
def test_more_than_one_credential_is_none(headers: list[tuple[bytes, bytes]]) -> None:
    assert caller_token(headers) == (None, True)


COOKIE = b"cookie"


@pytest.mark.parametrize(
    "headers",
    [
        [(COOKIE, b"sid=" + RAW)],
        [(COOKIE, b"a=b; sid=" + RAW + b"; c=d")],
        [(COOKIE, b"a=b;sid=" + RAW)],  # RFC 6265, 5.4 has a blank; not every client does
        [(COOKIE, b"sid2=x; Sid=x; xsid=" + RAW + b"; sid=" + RAW)],
        [(COOKIE, b"a=b"), (COOKIE, b"sid=" + RAW)],  # HTTP/2 may split the header
        [(COOKIE, b"sid=" + RAW), BASIC],
        [(COOKIE, b"a=sid=" + RAW), (X_AUTH, RAW)],
    ],
)
def test_token_in_the_named_cookie_is_the_callers(headers: list[tuple[bytes, bytes]]) -> None:
    assert caller_token(headers, b"sid") == (TOKEN, True)


@pytest.mark.parametrize(
    "headers",
    [
        [(COOKIE, b"sid=" + RAW + b"; sid=" + RAW)],  # two paths or domains
        [(COOKIE, b"sid=" + RAW), (COOKIE, b"sid=" + RAW)],
        [(COOKIE, b"sid=" + RAW), (X_AUTH, RAW)],
        [(COOKIE, b"sid=" + RAW), (AUTH, b"Bearer " + RAW)],
        [(COOKIE, b"sid=; a=b"), (X_AUTH, RAW)],
        [(COOKIE, b"sid=")],
        [(COOKIE, b"sid")],
        [(COOKIE, b'sid="' + RAW + b'"')],
        [(COOKIE, b"sid=" + RAW + b"=")],
        [(COOKIE, b"sid= " + RAW)],
        [(COOKIE, b"sid=" + RAW + b",a=b")],
        [(COOKIE, b"sid=" + RAW), (AUTH, b"Bearer " + RAW), BASIC],
    ],
)
def test_cookie_counts_as_one_credential(headers: list[tuple[bytes, bytes]]) -> None:
    assert caller_token(headers, b"sid") == (None, True)


@pytest.mark.parametrize("cookie", [b"", b"a=b", b"Sid=" + RAW, b"sid =" + RAW, b"a=sid=" + RAW])
def test_other_cookies_do_not_count(cookie: bytes) -> None:
    assert caller_token([(COOKIE, cookie)], b"sid") == (None, False)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        RAW[:-1],
        RAW + b"A",
        RAW + b"=",
        RAW + b"\n",
        RAW + b"\x00",
        RAW.upper(),
        b"SES_" + RAW[4:],
        b"ses-" + RAW[4:],
        RAW[:-1] + b"+",
        RAW[:-1] + b"/",
        RAW[:-1] + b"\xff",
        RAW[:-1] + "é".encode(),
        RAW[:-1] + "é".encode("latin-1"),
        RAW[:-2] + "٣".encode(),
        RAW[:-3] + "\uff17".encode(),
        b"Bearer " + RAW,
        b"\x80" * 49,
    ],
)
def test_malformed_token_is_no_credential(value: bytes) -> None:
    assert caller_token([(X_AUTH, value)]) == (None, True)


def test_tab_does_not_separate_the_scheme() -> None:
    assert caller_token([(AUTH, b"Bearer\t" + RAW)])[0] is None


VALUES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([RAW, b"Bearer " + RAW, b"bearer  " + RAW, b"Bearer", b"", b"Bearer " + KEY]),
    st.binary(max_size=4).map(lambda tail: b"Bearer " + RAW + tail),
)
HEADERS = st.lists(st.tuples(st.sampled_from([AUTH, X_AUTH, b"x-other"]), VALUES), max_size=4)


@given(HEADERS)
def test_any_headers_have_one_well_formed_token_or_none(
    headers: list[tuple[bytes, bytes]],
) -> None:
    sent = [value for name, value in headers if name == X_AUTH]
    for name, value in headers:
        scheme, _, credential = value.partition(b" ")
        if name == AUTH and scheme.lower() == b"bearer":
            sent.append(credential.lstrip(b" "))
    token, presented = caller_token(headers)
    # RFC 6750, 3.1: an error code only for a request that had a credential.
    assert presented == bool(sent)
    if token is not None:
        assert tokens.is_well_formed(token)
        assert sent == [token.encode()]


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER   "])
@pytest.mark.parametrize("key", [KEY, NEXT_KEY])
def test_any_of_the_service_keys_is_admitted(scheme: bytes, key: bytes) -> None:
    keys = ServiceKeys([KEY.decode(), NEXT_KEY.decode()], open_without_key=False)
    assert keys.admit([(AUTH, scheme + key)]) == (True, True)
    assert keys.admit([(X_AUTH, RAW), (AUTH, scheme + key)]) == (True, True)


@pytest.mark.parametrize(
    ("headers", "presented"),
    [
        ([], False),
        ([BASIC], False),
        ([(X_AUTH, KEY)], False),  # it authenticates callers, not services
        ([(AUTH, KEY)], False),
        ([(AUTH, b"Bearer")], True),
        ([(AUTH, b"Bearer ")], True),
        ([(AUTH, b"Bearer " + KEY[:-1])], True),
        ([(AUTH, b"Bearer " + KEY + b"k")], True),
        ([(AUTH, b"Bearer " + KEY.upper())], True),
        ([(AUTH, b"Bearer " + KEY + b"," + NEXT_KEY)], True),
        ([(AUTH, b"Bearer " + b"\xff" * 32)], True),
        ([(AUTH, b"Bearer " + RAW)], True),
        ([(AUTH, b"Bearer " + KEY), (AUTH, b"Bearer " + KEY)], True),
        ([(AUTH, b"Bearer " + KEY), (AUTH, b"Bearer " + NEXT_KEY)], True),
        ([BASIC, (AUTH, b"Bearer " + KEY)], True),
    ],
)
def test_headers_without_the_service_key_are_not_admitted(
    headers: list[tuple[bytes, bytes]], presented: bool
) -> None:
    keys = ServiceKeys([KEY.decode(), NEXT_KEY.decode()], open_without_key=False)
    assert keys.admit(headers) == (False, presented)


def test_without_any_key_open_without_decides() -> None:
    for headers in [], [(AUTH, b"Bearer")], [(AUTH, b"Bearer ")], [(AUTH, b"Bearer " + KEY)]:
        assert ServiceKeys([], open_without_key=True).admit(headers)[0]
        assert not ServiceKeys([], open_without_key=False).admit(headers)[0]


def test_service_key_closes_what_is_open_without_one() -> None:
    keys = ServiceKeys([KEY.decode()], open_without_key=True)
    assert keys.admit([]) == (False, False)
    assert keys.admit([(AUTH, b"Bearer " + KEY)]) == (True, True)


@given(HEADERS)
def test_any_headers_are_admitted_with_the_key_alone(headers: list[tuple[bytes, bytes]]) -> None:
    admitted, _ = ServiceKeys([KEY.decode()], open_without_key=False).admit(headers)
    values = [value for name, value in headers if name == AUTH]
    expected = len(values) == 1 and re.fullmatch(b"(?i:bearer) +" + KEY, values[0]) is not None
    assert admitted == expected
