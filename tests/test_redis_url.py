"""Redis's URLs: what is read, and what is refused before anything is opened."""

import re

import pytest

from sesiones.redis_client import connect
from sesiones.redis_url import Nodes, check, parse_cluster, parse_sentinel


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis+sentinel://a:1,b:2/m", Nodes((("a", 1), ("b", 2)), "m")),
        ("redis+sentinel://a:1, b:2 ,  [::1]:3/m", Nodes((("a", 1), ("b", 2), ("::1", 3)), "m")),
        ("redis+sentinel://a/m/12", Nodes((("a", 6379),), "m", 12)),
        (
            "redis+sentinel://u:p%40s@a:1/m?sentinel_username=s&sentinel_password=%3F%26",
            Nodes(
                (("a", 1),),
                "m",
                0,
                {"username": "u", "password": "p@s"},
                {"username": "s", "password": "?&"},
            ),
        ),
        (
            "redis+sentinel://:p@a:1/m?sentinel_password=q",
            Nodes((("a", 1),), "m", 0, {"password": "p"}, {"password": "q"}),
        ),
    ],
)
def test_sentinel_url_names_nodes_master_database_and_credentials(
    url: str, expected: Nodes
) -> None:
    assert parse_sentinel(url) == expected


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("redis+cluster://a:1,b:2", (("a", 1), ("b", 2))),
        ("redis+cluster://a:1 , b:2/0", (("a", 1), ("b", 2))),
        ("redis+cluster://a,[fe80::1]:7/", (("a", 6379), ("fe80::1", 7))),
    ],
)
def test_cluster_url_names_its_nodes(url: str, addresses: tuple[tuple[str, int], ...]) -> None:
    assert parse_cluster(url).addresses == addresses


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
"""
WITH_BLANKS = [
    *("redis://a b:1", "redis:// a:1", "redis://a:6379\n", "redis://a\t:6379"),
    *("redis+sentinel://a:1, /m", "redis+sentinel://a b:1/m", "redis+sentinel://a:1/m\n"),
    "redis+sentinel://a:1/my master",
]


@pytest.mark.parametrize("url", [*MALFORMED.split(), *WITH_BLANKS])
def test_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=re.compile("")):
        check(url)
    with pytest.raises(ValueError, match=re.compile("")):
        connect(url, 1)
