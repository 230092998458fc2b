"""The page at /docs, in headless Chromium."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.service import Service
from tests.harness.stores import KEY

pytest.importorskip("selenium", reason="needs `make browser`")
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.harness.browser import INSTALLED, chromium

pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs chromium and chromium-driver")

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
DESKTOP = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


class Page:
    """The page, as its user sees it."""

    def __init__(self, browser: WebDriver, service: Service) -> None:
        self.browser = browser
        browser.get(f"http://127.0.0.1:{service.port}/docs")
        WebDriverWait(browser, 10).until(lambda _: self.all("article"))

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        found: list[WebElement] = self.browser.find_elements(By.CSS_SELECTOR, selector)
        return found

    def value(self, identifier: str) -> str:
        return str(self.one(f"#{identifier}").get_property("value"))

    def click(self, selector: str) -> None:
        button = self.one(selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def send(self, operation: str) -> tuple[int, str]:
        """The status and the text of the answer that the page shows."""
        self.click(f"#{operation} .send")
        answer = f"#{operation} .answer"
        WebDriverWait(self.browser, 10).until(
            lambda _: self.all(f"{answer} .status, {answer} .failure")
        )
        return int(self.one(f"{answer} .status").text), self.one(answer).text

    def complaints(self) -> list[str]:
        """What the console says: errors, warnings and violations of the policy."""
        log = self.browser.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]


@pytest.fixture
def page(browser: WebDriver, service: Service) -> Page:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", DESKTOP)
    return Page(browser, service)


def test_a_session_is_created_checked_and_ended(page: Page, service: Service) -> None:
    assert page.complaints() == []
    page.one("#clave").send_keys(KEY)
    status, shown = page.send("crear")
    assert status == 201
    token = page.value("token")
    assert token.startswith("ses_")
    assert token in shown

    status, shown = page.send("ver")
    assert (status, '"ID_Usuario": 48213' in shown) == (200, True)
    Select(page.one("#ver-metodo")).select_by_value("head")
    status, shown = page.send("ver")
    assert (status, "Sin cuerpo." in shown) == (200, True)
    Select(page.one("#ver-metodo")).select_by_value("get")
    for method in "POST", "DELETE", "PATCH":
        Select(page.one("#verificarRuta-metodo")).select_by_value(method.lower())
        status, shown = page.send("verificarRuta")
        assert (status, "x-id-usuario: 48213" in shown, "Sin cuerpo." in shown) == (200, True, True)
    assert page.send("modificar")[0] == 200
    assert page.complaints() == []

    status, shown = page.send("cerrar")
    assert (status, '"Sesiones_Eliminadas": 1' in shown) == (200, True)
    assert service.request("GET", "/sesiones/self", {"x-auth-token": token}).status == 401
    status, shown = page.send("ver")
    assert (status, "Falta una credencial válida." in shown) == (401, True)
    # Chromium itself reports the 401, and nothing else.
    assert [("/sesiones/self" in one, "401" in one) for one in page.complaints()] == [(True, True)]


def test_credentials_stay_in_memory(page: Page) -> None:
    page.one("#clave").send_keys(KEY)
    page.send("crear")
    token = page.value("token")
    stored = "return [location.href, document.cookie, {...localStorage}, {...sessionStorage}]"
    for place in page.browser.execute_script(stored):
        assert token not in str(place)
        assert KEY not in str(place)
    assert [page.one(f"#{name}").get_property("type") for name in ("token", "clave")] == [
        "password",
        "password",
    ]
    page.one("#mostrar").click()
    assert page.one("#token").get_property("type") == "text"
    page.browser.refresh()
    assert (page.value("token"), page.value("clave")) == ("", "")


def test_page_shows_the_whole_document(page: Page, service: Service) -> None:
    document = service.request("GET", "/openapi.json").json()
    shown = page.one("main").get_property("textContent")
    operations = [
        operation
        for item in document["paths"].values()
        for operation in item.values()
        if isinstance(operation, dict)
    ]
    for operation in operations:
        assert operation["summary"] in shown
    assert len(page.all("article")) == len({operation["summary"] for operation in operations})
    assert len(page.all("nav li a")) == len(page.all("article"))
    # An example may be false; the prose has no value that a script has put there by mistake.
    shown = page.browser.execute_script(
        """const copy = document.querySelector("main").cloneNode(true);
        for (const one of copy.querySelectorAll("pre")) one.remove();
        return copy.textContent"""
    )
    for wrong in "[object", "undefined", "false", "null", "NaN", "`", "**":
        assert wrong not in shown, wrong


def test_devices_are_listed_and_one_is_ended(page: Page, service: Service) -> None:
    user, script = 48_214, "<img src=x onerror=alert(1)> & <b>móvil</b>"
    made = [service.new_session(user, device) for device in ("portátil", script)]
    token, rows = made[0]["Token_Sesion"], ".devices li"
    page.one("#token").send_keys(token)
    page.click("#ver-dispositivos")
    WebDriverWait(page.browser, 10).until(lambda _: len(page.all(rows)) == 2)
    shown = {row.get_attribute("data-sesion"): row.text for row in page.all(rows)}
    own, other = (str(sesion["ID_Sesion"]) for sesion in made)
    assert ["Es esta sesión." in shown[number] for number in (own, other)] == [True, False]
    assert script in shown[other]
    assert token not in page.one("#lista-dispositivos").get_property("innerHTML")

    page.click(f"{rows}[data-sesion='{other}'] button")
    WebDriverWait(page.browser, 10).until(lambda _: len(page.all(rows)) == 1)
    ended = {"x-auth-token": made[1]["Token_Sesion"]}
    assert service.request("GET", "/sesiones/self", ended).status == 401
    assert page.complaints() == []

    page.click(f"{rows}[data-sesion='{own}'] button")
    WebDriverWait(page.browser, 10).until(lambda _: page.all("#lista-dispositivos .failure"))
    assert page.one("#lista-dispositivos").text == "Falta una credencial válida."
    assert service.request("GET", "/sesiones/self", {"x-auth-token": token}).status == 401
    assert ["401" in one for one in page.complaints()] == [True]


def test_a_form_is_sent_as_a_form(page: Page) -> None:
    page.one("#clave").send_keys(KEY)
    page.send("crear")
    body = page.one("#introspeccion-cuerpo")
    body.clear()
    body.send_keys(f"token={page.value('token')}")
    status, shown = page.send("introspeccion")
    assert (status, '"active": true' in shown, '"sub": "48213"' in shown) == (200, True, True)
    status, shown = page.send("listarUsuario")
    assert (status, "Firefox en Fedora (portátil)" in shown) == (200, True)
    assert page.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_fits_every_screen_and_can_be_read(
    page: Page, screen: dict[str, object], scheme: str
) -> None:
    """No sideways scrolling, no text under the contrast of WCAG AA, a name on every control."""
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    page.browser.execute_script(
        "for (const one of document.querySelectorAll('main details')) one.open = true"
    )
    page.one("#clave").send_keys(KEY)
    page.send("crear")
    page.click("#ver-dispositivos")
    WebDriverWait(page.browser, 10).until(lambda _: page.all(".devices li"))
    width = page.browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= int(str(screen["width"]))
    assert page.browser.execute_script(Path(__file__).with_name("contrast.js").read_text()) == []
    for control in page.all("input, select, textarea, button"):
        assert control.accessible_name, control.get_property("outerHTML")
    assert page.complaints() == []


def test_policy_stops_what_is_injected(page: Page, service: Service) -> None:
    """What is injected does not run, and what is outside is not loaded."""
    policy = service.request("GET", "/docs").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    page.browser.execute_script(
        """const style = document.createElement("style");
        style.textContent = "main { color: red }";
        document.body.append(style, new Image());
        document.images[0].src = "/docs";"""
    )
    violations = page.complaints()
    assert len(violations) >= 2
    assert all("Content Security Policy" in one for one in violations)
