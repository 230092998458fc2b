"""The configurations for a website: the cookie, the kinds of paths, what the application gets. A
test's docstring is its row in the table."""

from contextlib import closing
from typing import Any

import pytest

from tests.gateways.client import Headers, WebSocket, raw
from tests.gateways.stand import (
    IDENTITY,
    SPELLINGS,
    SPOOFED,
    Arrived,
    Stand,
    cookie,
    passed,
    refused,
    served,
    token,
)

OPEN = ["/public", "/public/", "/public/a.css", "/public/a/b_c-d.e?f=/..&g=%2e", "/public?a"]
AUTH = "/auth/login"


def credentials(arrived: Arrived) -> list[str]:
    """The tokens that the application could use."""
    return [value for _, value in arrived.headers if "ses_" in value]


def bearer(session: dict[str, Any]) -> Headers:
    return [("Authorization", f"Bearer {session['Token_Sesion']}")]


def test_cookie(stand: Stand, session: dict[str, Any]) -> None:
    """a live session passes, with the cookie `__Host-sesion`"""
    live = session["Token_Sesion"]
    for value in (
        f"__Host-sesion={live}",
        f"a=1; __Host-sesion={live}",
        f"__Host-sesion={live}; b=2",
        f"a=1;__Host-sesion={live};b=2",
        f"x__Host-sesion=3; __Host-sesion={live}; __Host-sesion2=4",
    ):
        served(stand, stand.ask([("Cookie", value)]), session)
    lines = [("Cookie", "a=1"), *cookie(session), ("Cookie", "b=2")]
    assert not credentials(served(stand, stand.ask(lines), session))
    assert not credentials(passed(stand, stand.ask(lines, target="/public/a")))


def test_cookie_of_a_websocket(stand: Stand, session: dict[str, Any]) -> None:
    """so does a WebSocket"""
    headers = [*cookie(session), ("Origin", stand.running.origin)]
    with closing(WebSocket(stand.port, headers, "/live")) as websocket:
        assert websocket.status == 101
        assert websocket.ask("hello") == "hello"
    (arrived,) = stand.arrived
    assert arrived.has_right_identity()
    assert not credentials(arrived)


@pytest.mark.parametrize(
    "value",
    [
        "__Host-sesion=",
        "__Host-sesion={live}A",
        '__Host-sesion="{live}"',
        "__Host-sesion= {unknown}",
        "__host-sesion={live}",
        "__HOST-SESION={live}",
        "__Host-sesion ={live}",
        "x__Host-sesion={live}",
        "x __Host-sesion={live}",
        "__Host-sesionx={live}",
        "sesion={live}",
        # Others than this site can set a cookie of another name. It must not be read as two.
        "a=b,__Host-sesion={live}",
        'a="b; __Host-sesion={unknown}; c="',
        "a=b&__Host-sesion={live}",
        "a=__Host-sesion={live}",
    ],
)
def test_other_cookies_do_not_pass(stand: Stand, session: dict[str, Any], value: str) -> None:
    """401 for a cookie that is malformed, unknown or of a similar name"""
    sent = value.format(live=session["Token_Sesion"], unknown="ses_" + "A" * 45)
    refused(stand, stand.ask([("Cookie", sent)]))


def test_cookie_of_an_ended_session(stand: Stand, session: dict[str, Any]) -> None:
    """401 for a cookie whose session has ended"""
    served(stand, stand.ask(cookie(session)), session)
    stand.backend.end_session(session)
    refused(stand, stand.ask(cookie(session)))


def test_exactly_one_credential(stand: Stand, session: dict[str, Any]) -> None:
    """401 for two credentials: two cookies, or a cookie and a header"""
    (one,) = cookie(session)
    twice = ("Cookie", f"{one[1]}; {one[1]}")
    apart = ("Cookie", f"a=1; {one[1]}; b=2;{one[1]}")
    unknown = ("Cookie", f"__Host-sesion=ses_{'A' * 45}")
    empty = ("Cookie", "__Host-sesion=")
    for headers in (
        [twice],
        [apart],
        [one, one],
        [one, unknown],
        [unknown, one],
        [one, *token(session)],
        [one, *bearer(session)],
        [unknown, *token(session)],
        [empty, *token(session)],
        [empty, one],
        [*token(session), *bearer(session)],
    ):
        refused(stand, stand.ask(headers))


@pytest.mark.parametrize("credential", [token, bearer, cookie])
def test_application_gets_no_token(stand: Stand, session: dict[str, Any], credential: Any) -> None:
    """the application gets no token: neither `x-auth-token`, `Authorization` nor the cookie"""
    for method in "GET", "POST":
        reply = stand.ask(credential(session), method, "/a")
        assert not credentials(served(stand, reply, session))
    basic = [*cookie(session), ("Authorization", "Basic YTpi")]
    assert not served(stand, stand.ask(basic), session).values("authorization")


def test_other_cookies_arrive(stand: Stand, session: dict[str, Any]) -> None:
    """it gets the other cookies"""
    live = session["Token_Sesion"]
    for value in (
        f'a=1; __Host-sesion={live}; b="2"',
        f'__Host-sesion={live};a=1;b="2"',
        f'a=1; b="2"; __Host-sesion={live}',
    ):
        for target in "/", "/public/a", AUTH:
            stand.arrived.clear()
            assert stand.ask([("Cookie", value)], target=target).status == 200
            (arrived,) = stand.arrived
            (others,) = arrived.values("cookie")
            assert {each.strip() for each in others.split(";")} - {""} == {"a=1", 'b="2"'}


@pytest.mark.parametrize("target", OPEN)
def test_public(stand: Stand, session: dict[str, Any], target: str) -> None:
    """public paths pass without a session, and get neither identity nor token"""
    (one,) = cookie(session)
    for headers in (
        [],
        token(session),
        [*token(session), *bearer(session)],
        [one],
        [one, one],
        [("Cookie", f"{one[1]}; a=1; {one[1]}")],
        [("Cookie", f"a=1; __Host-sesion = {session['Token_Sesion']}")],
    ):
        for method in "GET", "POST":
            arrived = passed(stand, stand.ask(headers, method, target))
            assert arrived.target == target
            assert not arrived.identity()
            assert not credentials(arrived)


@pytest.mark.parametrize("value", [SPOOFED, ""])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("target", ["/public/a", AUTH])
def test_spoofed_identity_of_open_paths(
    stand: Stand, session: dict[str, Any], target: str, spelling: str, value: str
) -> None:
    """nor the client's own identity headers: any case, repeated, with underscores or dots"""
    spoofed = [(SPELLINGS[spelling](name), value) for name in IDENTITY] * 2
    for headers in [], cookie(session), [("Connection", "keep-alive, x-id-usuario")]:
        arrived = passed(stand, stand.ask([*spoofed, *headers], target=target))
        assert not arrived.identity()


LOOKALIKES = [
    "/publico",
    "/public.a",
    "/public;/a",
    "/PUBLIC/a",
    "/a/public/a",
    "/public/../a",
    "/public/..",
    "/public/.a",
    "/public/a/../../b",
    "/public/%2e%2e/a",
    "/public/.%2e/a",
    "/public/..%2fa",
    "/public%2f..%2fa",
    "/public/..;/a",
    "/public/a/..\\..\\b",
    "/public/%5c../a",
    "/public/%252e%252e/a",
    "/public/a%00",
    "/public%00/a",
    "/public/\t/../a",
    "/public%2fa",
    "/%70ublic/../a",
    "/a?/public/a",
    "/a#/public/a",
    "/a/..;/public/a",
    "/auth/../a",
    "/auth/%2e%2e/a",
    "/background/../a",
    "http://public/a/b",
]
"""Paths that are not public, but that some part of a gateway could take for public ones."""


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("target", LOOKALIKES)
def test_lookalikes(stand: Stand, target: str, method: str) -> None:
    """no other path is public, however it is written"""
    head = f"{method} {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    assert raw(stand.port, head.encode()) in (400, 401)
    assert not stand.arrived


DETOURS = [
    "/a/../public/a",
    "/a/%2e%2e/public/a",
    "/a/..%2fpublic/a",
    "/a;/../public/a",
    "/%70ublic/a",
    "/./public/a",
    "/public/./a",
    "/public/.",
    "/public//a",
    "//public/a",
]
"""Paths that are public once they are cleaned."""


@pytest.mark.parametrize("target", DETOURS)
def test_detours(stand: Stand, target: str) -> None:
    """one that is public only once it is cleaned is cleaned, or is checked"""
    status = raw(stand.port, f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    cleaned = [arrived.target in ("/public", "/public/", "/public/a") for arrived in stand.arrived]
    assert (status, cleaned) in ((200, [True]), (400, []), (401, []))


def test_auth(stand: Stand, session: dict[str, Any]) -> None:
    """paths of `/auth/` pass without a session, and get the token as `x-auth-token`"""
    live = session["Token_Sesion"]
    for method in "GET", "POST":
        assert not credentials(passed(stand, stand.ask([], method, AUTH)))
        for headers in token(session), cookie(session):
            arrived = passed(stand, stand.ask(headers, method, AUTH))
            assert arrived.values("x-auth-token") == [live]
            assert arrived.values("cookie") in ([], [""])
            assert not arrived.identity()
        assert passed(stand, stand.ask(bearer(session), method, AUTH)).values("authorization") == [
            f"Bearer {live}"
        ]


def test_two_credentials_of_auth(stand: Stand, session: dict[str, Any]) -> None:
    """of two credentials they do not get one"""
    other = stand.backend.new_session()
    (one,) = cookie(session)
    for headers in (
        [one, *token(other)],
        [one, *cookie(other)],
        [("Cookie", f"{one[1]}; __Host-sesion={other['Token_Sesion']}")],
    ):
        values = passed(stand, stand.ask(headers, target=AUTH)).values("x-auth-token")
        assert len(values) != 1 or not values[0].startswith("ses_") or "," in values[0]
