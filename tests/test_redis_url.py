"""Redis's URLs: what is read, and what is refused before anything is opened."""

import re

import pytest

from sesiones.redis_client import connect
from sesiones.redis_url import parse


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://a", {"public": "redis://a"}),
        (
            "rediss://u:p%40s@a:1/3",
            {"database": 3, "credentials": {"username": "u", "password": "p@s"}},
        ),
        ("redis://u@a/3?db=4&db=5", {"database": 4, "credentials": {"username": "u"}}),
        (
            "redis://u:p@a?password=q&ssl_ca_path=/x",
            {"public": "redis://a", "credentials": {"username": "u", "password": "p"}},
        ),
        ("redis://a:1/0?password=q", {"public": "redis://a:1/0", "credentials": {"password": "q"}}),
        (
            "unix://u:p@/run/a@b.sock?db=3",
            {
                "public": "unix:///run/a@b.sock",
                "database": 3,
                "credentials": {"username": "u", "password": "p"},
            },
        ),
        (
            "redis+sentinel://a:1,b:2/m",
            {"addresses": (("a", 1), ("b", 2)), "master": "m", "database": 0},
        ),
        ("redis+sentinel://a:1, b:2 ,  [::1]:3/m", {"addresses": (("a", 1), ("b", 2), ("::1", 3))}),
        ("redis://u:p@h:1/4", {"database": 4}),
        ("redis://h?db=4", {"database": 4}),
        ("redis+sentinel://a/m/12", {"addresses": (("a", 6379),), "database": 12}),
        (
            "redis+sentinel://u:p%40s@a:1/m?sentinel_username=s&sentinel_password=%3F%26",
            {
                "public": "redis+sentinel://a:1/m",
                "credentials": {"username": "u", "password": "p@s"},
                "sentinel_credentials": {"username": "s", "password": "?&"},
            },
        ),
        (
            "redis+sentinel://:p@a:1/m?sentinel_password=q",
            {"credentials": {"password": "p"}, "sentinel_credentials": {"password": "q"}},
        ),
        ("redis+cluster://a:1,b:2", {"addresses": (("a", 1), ("b", 2)), "database": 0}),
        ("redis+cluster://a:1 , b:2/0", {"addresses": (("a", 1), ("b", 2))}),
        ("redis+cluster://a,[fe80::1]:7/", {"addresses": (("a", 6379), ("fe80::1", 7))}),
        ("redis+cluster://a", {"uses_tls": False}),
        ("redis://a", {"uses_tls": False}),
        ("rediss://a", {"uses_tls": True, "is_cluster": False, "is_sentinel": False}),
        (
            "rediss+sentinel://:p@a:1,b:2/m/3?sentinel_password=q",
            {
                "public": "rediss+sentinel://a:1,b:2/m/3",
                "uses_tls": True,
                "is_sentinel": True,
                "is_cluster": False,
                "database": 3,
            },
        ),
        (
            "rediss+cluster://u:p@a:1",
            {"public": "rediss+cluster://a:1", "uses_tls": True, "is_cluster": True},
        ),
        ("redis+cluster://u:hunter2@x@[::1]:7000", {"public": "redis+cluster://[::1]:7000"}),
    ],
)
def test_url_is_read_into_its_parts(url: str, expected: dict[str, object]) -> None:
    parsed = parse(url)
    assert {name: getattr(parsed, name) for name in expected} == expected


MALFORMED = """
    unix://tmp/x.sock unix://tmp unix:x.sock redis://a:1,b:2 redis://a:0 redis://a/0?db=x
    unix:///x.sock?db=-1 redis://a:65536
    redis+sentinel://a:1,,b:2/m redis+sentinel://a:1,/m redis+sentinel://a:0/m
    redis+sentinel://a:65536/m redis+sentinel://a:x/m redis+sentinel://a:1/
    redis+sentinel://a:1/m/-1 redis+sentinel://a:1/m/0/1 redis+sentinel://a:1/m?password=x
    redis+sentinel://a:1/m?sentinel_username=u redis+sentinel://a:1/m?sentinel_pasword=u
    redis+sentinel://user:pa#ss@a:1/m
    redis+cluster://a:1,,b:2 redis+cluster://a:1;b:2 redis+cluster://a:1/1
    redis+cluster://a:1?x=y redis+cluster://
    redis://u:12/hunter2@a unix://:12/hunter2@/run/s redis+sentinel://u:12/hunter2@a
    redis+cluster://u:12/hunter2@a
"""
WITH_BLANKS = [
    *("redis://a b:1", "redis:// a:1", "redis://a:6379\n", "redis://a\t:6379"),
    *("redis+sentinel://a:1, /m", "redis+sentinel://a b:1/m", "redis+sentinel://a:1/m\n"),
    "redis+sentinel://a:1/my master",
]


@pytest.mark.parametrize("url", [*MALFORMED.split(), *WITH_BLANKS])
def test_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=re.compile("")):
        parse(url)
    with pytest.raises(ValueError, match=re.compile("")):
        connect(url, 1)
