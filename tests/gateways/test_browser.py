"""The example website behind each gateway, in headless Chromium. A test's docstring is its row in
the table."""

import json
from collections.abc import Iterator

import pytest

from scripts.gateways import Gateway

pytest.importorskip("selenium", reason="needs the extra browser")
from selenium.webdriver.remote.webdriver import WebDriver

from scripts.example import Website, website
from tests.harness.browser import INSTALLED, chromium
from tests.harness.website import Visitor, other_pages

pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs chromium and chromium-driver")

RECHECK_SECONDS = 0.5


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="module")
def site(gateway: Gateway) -> Iterator[Website]:
    with website(gateway, recheck_seconds=RECHECK_SECONDS) as site:
        yield site


@pytest.fixture
def visitor(site: Website, browser: WebDriver) -> Visitor:
    """Of user 7, who has no session yet."""
    end(site)
    return Visitor(browser, site.gateway.origin)


def sessions(site: Website) -> list[int]:
    """The ID_Sesion of each live session of user 7."""
    backend = {"Authorization": f"Bearer {site.service_key}"}
    reply = site.node.request("GET", "/sesiones/usuarios/7", backend)
    return [each["ID_Sesion"] for each in reply.json()["Sesiones"]]


def end(site: Website, session: int | None = None) -> None:
    """End one session of user 7, or all."""
    backend = {"Authorization": f"Bearer {site.service_key}"}
    path = "/sesiones/usuarios/7" + (f"/{session}" if session else "")
    assert site.node.request("DELETE", path, backend).status == 200


def test_login_and_logout(site: Website, visitor: Visitor) -> None:
    """in Chromium: refused, log in, see the own devices, log in anew, log out, refused"""
    visitor.is_refused()
    visitor.login(password="wrong")
    visitor.is_refused()
    visitor.login()
    (first,) = visitor.devices(1)
    assert sessions(site) == [int(first)]
    cookie = visitor.cookie()
    assert cookie is not None
    assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Lax")
    visitor.login()
    (second,) = visitor.devices(1)  # the login has ended the session before
    assert second != first
    visitor.leave("#logout")
    visitor.shows("Log in", "h1")
    assert visitor.cookie() is None
    assert sessions(site) == []
    visitor.is_refused()


def test_websocket(site: Website, visitor: Visitor) -> None:
    """in Chromium: a WebSocket opens, and closes when its session ends"""
    visitor.login()
    visitor.shows("user 7", "#live")
    (session,) = sessions(site)
    end(site, session)
    visitor.shows("closed: 4401", "#live")
    visitor.is_refused()


def test_other_origin(site: Website, visitor: Visitor) -> None:
    """in Chromium: a page of an allowed origin calls the API (CORS), and reads a 401"""
    url = f"{visitor.origin}/devices"
    with other_pages(site.gateway.front) as port:
        visitor.login()
        (session,) = visitor.devices(1)
        visitor.browser.get(f"http://localhost:{port}/")
        status, text = visitor.fetch(url)
        assert (status, [each["ID_Sesion"] for each in json.loads(text)]) == (200, [int(session)])
        assert visitor.fetch(f"{url}/1", method="DELETE") == [200, '{"ended":0}']  # preflighted
        assert json.loads(visitor.websocket(f"ws{visitor.origin[4:]}/live")) == {"user": 7}
        end(site, int(session))
        status, text = visitor.fetch(url)
        assert (status, json.loads(text)["title"]) == (401, "No autorizado")
        status, text = visitor.fetch(f"{url}/1", method="DELETE")
        assert (status, json.loads(text)["title"]) == (401, "No autorizado")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])  # of the same site, and of another one
def test_forged_requests(site: Website, visitor: Visitor, host: str) -> None:
    """in Chromium: a page of a foreign origin changes nothing, reads nothing, opens no WebSocket"""
    visitor.login()
    (session,) = visitor.devices(1)
    with other_pages() as port:
        visitor.browser.get(f"http://{host}:{port}/")
        for target in "/devices", f"/devices/{session}", "/auth/logout", "/auth/login", "/public/a":
            for method in "GET", "POST", "DELETE":
                answer = visitor.fetch(f"{visitor.origin}{target}", method=method)
                assert answer == ["TypeError", ""]
                if method != "DELETE":
                    answer = visitor.fetch(
                        f"{visitor.origin}{target}", method=method, mode="no-cors"
                    )
                    assert answer == [0, ""]
        assert visitor.websocket(f"ws{visitor.origin[4:]}/live") == ""
        visitor.submit(f"{visitor.origin}/auth/logout")
        visitor.shows("El origen de la petición no está permitido.")
    assert sessions(site) == [int(session)]
    visitor.browser.get(f"{visitor.origin}/")
    assert visitor.devices(1) == [session]
