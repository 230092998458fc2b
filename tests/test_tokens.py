"""Tokens: their shape, their bucket, their digest and fingerprint."""

import base64
import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesiones import tokens
from sesiones.sesion import INT_MAX

USERS = st.integers(0, INT_MAX)
BASE64URL = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
WELL_FORMED = st.text(BASE64URL, min_size=45, max_size=45).map(lambda tail: f"ses_{tail}")


@given(USERS)
def test_token_has_the_bucket_of_its_user_and_32_random_bytes(ID_Usuario: int) -> None:
    token = tokens.make(ID_Usuario)
    assert tokens.is_well_formed(token)
    assert (len(token), token[:4]) == (49, "ses_")
    assert tokens.bucket(token) == tokens.user_bucket(ID_Usuario)
    # Nothing but the bucket depends on the user: the rest is 32 random bytes.
    assert len(base64.urlsafe_b64decode(token[6:] + "=")) == 32


def test_make_never_repeats() -> None:
    secrets = [tokens.make(7)[6:] for _ in range(5_000)]
    assert len(set(secrets)) == 5_000
    # All 43 characters are random, the last with the 4 bits that are left for it.
    assert all(len({secret[i] for secret in secrets}) == 64 for i in range(42))
    assert len({secret[42] for secret in secrets}) == 16


@given(USERS)
def test_bucket_is_the_first_12_bits_of_the_hash(ID_Usuario: int) -> None:
    digest = hashlib.sha256(str(ID_Usuario).encode()).digest()
    bucket = tokens.user_bucket(ID_Usuario)
    assert bucket == base64.urlsafe_b64encode(digest)[:2].decode()
    assert tokens.bucket_number(bucket) == int.from_bytes(digest[:2]) >> 4


def test_bucket_number_is_the_value_of_its_characters() -> None:
    numbers = [tokens.bucket_number(a + b) for a in BASE64URL for b in BASE64URL]
    assert numbers == list(range(4096))


def test_buckets_are_in_the_order_of_their_numbers() -> None:
    assert sorted(map(tokens.bucket_number, tokens.BUCKETS)) == list(range(4096))


@pytest.mark.parametrize(
    ("ID_Usuario", "bucket"), [(0, "X-"), (7, "eQ"), (1000, "QF"), (INT_MAX, "9A")]
)
def test_bucket_stays_what_it_was(ID_Usuario: int, bucket: str) -> None:
    """Another one would lose every session that exists."""
    assert tokens.user_bucket(ID_Usuario) == bucket


@given(WELL_FORMED)
def test_45_characters_of_base64url_are_well_formed(token: str) -> None:
    assert tokens.is_well_formed(token)
    assert 0 <= tokens.bucket_number(tokens.bucket(token)) < 4096


@given(WELL_FORMED, st.integers(0, 48), st.characters())
def test_other_length_or_character_is_not_well_formed(token: str, at: int, character: str) -> None:
    before, after = token[:at], token[at + 1 :]
    assert not tokens.is_well_formed(before + after)
    assert not tokens.is_well_formed(before + character + token[at:])
    expected = character in BASE64URL if at > 3 else character == "ses_"[at]
    assert tokens.is_well_formed(before + character + after) == expected


@given(st.text() | st.from_regex(r"ses_[A-Za-z0-9_-]{44,46}"))
def test_text_is_well_formed_if_the_pattern_matches(text: str) -> None:
    well_formed = re.fullmatch(r"ses_[A-Za-z0-9_-]{45}", text) is not None
    assert tokens.is_well_formed(text) == well_formed


@pytest.mark.parametrize(
    "value",
    [
        "",
        "ses_",
        f"ses_{'A' * 45}\n",
        f" ses_{'A' * 45}",
        f"SES_{'A' * 45}",
        f"ses_{'A' * 44}=",
        f"ses_{'A' * 44}+",
        f"ses_{'A' * 44}é",
        f"ses_{'A' * 44}\u0661",  # a digit to str.isdigit()
        f"ses_{'A' * 44}\0",
    ],
)
def test_nearly_a_token_is_not_well_formed(value: str) -> None:
    assert not tokens.is_well_formed(value)


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "other"


@given(WELL_FORMED)
def test_parse_returns_a_plain_str(token: str) -> None:
    for value in (token, Text(token)):
        parsed = tokens.parse(value)
        assert parsed == token
        assert type(parsed) is str


@pytest.mark.parametrize("value", [None, 7, True, b"ses_" + b"A" * 45, [], Text("ses_"), object()])
def test_other_type_is_not_well_formed(value: object) -> None:
    assert tokens.parse(value) is None
    assert not tokens.is_well_formed(value)


@given(WELL_FORMED)
def test_digest_and_fingerprint_are_of_sha_256(token: str) -> None:
    digest = hashlib.sha256(token.encode())
    assert tokens.digest(token) == base64.urlsafe_b64encode(digest.digest()).decode()[:22]
    assert tokens.fingerprint(token) == digest.hexdigest()[:8]
    assert tokens.fingerprint_of_digest(tokens.digest(token)) == tokens.fingerprint(token)
