"""Session tokens: make, check, bucket, digest. No I/O.

A token is ``ses_``, two characters of bucket, and 43 characters of base64url (32 bytes from the
system's CSPRNG). The bucket is the first 12 bits of SHA-256 of ``ID_Usuario`` in decimal: it puts
every key of a user in one Redis Cluster hash slot, and reveals only which 1 of 4096 buckets the
user is in.
"""

import binascii
import hashlib
import re
import secrets

LENGTH = 49
PATTERN = r"ses_[A-Za-z0-9_-]{45}"
"""The shape of a token, to be compiled as str or as bytes."""
_WELL_FORMED = re.compile(PATTERN)
_FINGERPRINT = re.compile(r"ses_#[0-9a-f]{8}")
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"  # RFC 4648, 5
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def make(ID_Usuario: int) -> str:
    """A new token of 49 characters for the user."""
    return f"ses_{user_bucket(ID_Usuario)}{secrets.token_urlsafe(32)}"


def parse(value: object) -> str | None:
    """The value as a plain str when it has the shape of a token, whether or not a session has that
    token. None for anything else, of any type."""
    if isinstance(value, str) and _WELL_FORMED.fullmatch(value):
        return str.__str__(value)  # a subclass may format as something else
    return None


def is_well_formed(value: object) -> bool:
    """Whether the value has the shape of a token."""
    return parse(value) is not None


def user_bucket(ID_Usuario: int) -> str:
    """The user's bucket, two base64url characters."""
    first, second = hashlib.sha256(b"%d" % ID_Usuario).digest()[:2]
    return _ALPHABET[first >> 2] + _ALPHABET[(first & 3) << 4 | second >> 4]


def bucket_number(bucket: str) -> int:
    """The bucket as an integer, 0..4095."""
    return _ALPHABET.index(bucket[0]) << 6 | _ALPHABET.index(bucket[1])


BUCKETS = frozenset(first + second for first in _ALPHABET for second in _ALPHABET)
"""All 4,096 buckets."""


def bucket(token: str) -> str:
    """The bucket that a well-formed token names."""
    return token[4:6]


def digest(token: str) -> str:
    """The first 132 bits of the token's SHA-256 in base64url, 22 characters: the session's name
    in Redis."""
    encoded = binascii.b2a_base64(hashlib.sha256(token.encode()).digest())
    return encoded.translate(_URL_SAFE)[:22].decode()


def fingerprint(token: str) -> str:
    """The first 8 hex digits of the token's SHA-256, which stand for it in a log."""
    return hashlib.sha256(token.encode()).hexdigest()[:8]


def fingerprint_of_name(value: str) -> str | None:
    """The fingerprint in a token's name in the log, ``ses_#1a2b3c4d``; None of anything else."""
    return value.removeprefix("ses_#") if _FINGERPRINT.fullmatch(value) else None


def masked(value: object) -> str:
    """The fingerprint of a Token_Sesion as a log shows it. A fingerprint stays as it is."""
    if (token := parse(value)) is not None:
        return f"ses_#{fingerprint(token)}"
    return value if isinstance(value, str) and _FINGERPRINT.fullmatch(value) else "..."


def fingerprint_of_digest(digest: str) -> str:
    """The fingerprint of a token of which only the digest is known."""
    return binascii.a2b_base64(digest[:8].translate({45: "+", 95: "/"})).hex()[:8]


def digest_start(fingerprint: str) -> str:
    """The first 5 characters of every digest that has the fingerprint. The sixth shares 2 bits with
    it."""
    return binascii.b2a_base64(bytes.fromhex(fingerprint)).translate(_URL_SAFE)[:5].decode()
