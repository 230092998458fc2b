"""`make example` in headless Chromium: docs/examples/website behind Caddy."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="needs `make browser`")
from selenium.webdriver.remote.webdriver import WebDriver

from tests.harness.browser import INSTALLED, chromium
from tests.harness.service import comes_true, environment
from tests.harness.website import Visitor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not INSTALLED, reason="needs chromium and chromium-driver"),
]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def browsers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[WebDriver]]:
    with (
        chromium(tmp_path_factory.mktemp("one")) as one,
        chromium(tmp_path_factory.mktemp("two")) as two,
    ):
        yield [one, two]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """That of the website, which SIGTERM ends with all that it has started."""
    output = tmp_path_factory.mktemp("example") / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.example", "--port", "0"],
            cwd=ROOT,
            env=environment(),
            stdout=file,
            stderr=file,
        )
    try:
        assert comes_true(lambda: "Ctrl-C" in output.read_text() or process.poll() is not None, 50)
        match = re.search(r"Website: (\S+)/auth/login", output.read_text())
        assert match, output.read_text()
        yield match[1]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert "Traceback" not in output.read_text()


@pytest.fixture
def visitors(browsers: list[WebDriver], origin: str) -> list[Visitor]:
    return [Visitor(browser, origin) for browser in browsers]


def test_other_devices_are_logged_out(visitors: list[Visitor]) -> None:
    """At once by the gateway, and within 5 s where a WebSocket is open."""
    one, two = visitors
    one.login()
    two.login()
    two.shows("user 7", "#live")
    one.click("#others")
    (own,) = one.devices(1)
    two.shows("closed: 4401", "#live")
    two.is_refused()
    one.browser.refresh()
    assert one.devices(1) == [own]


def test_one_device_is_logged_out(visitors: list[Visitor]) -> None:
    one, two = visitors
    two.login("8", "oculto")
    two.click("#others")
    (other,) = two.devices(1)
    one.login("8", "oculto")
    one.devices(2)
    one.click(f"#devices li[data-sesion='{other}'] button")
    one.devices(1)
    two.is_refused()


def test_login_ends_the_session_before_even_of_another_user(visitors: list[Visitor]) -> None:
    one, two = visitors
    two.login()
    two.click("#others")
    two.devices(1)
    one.login()
    two.browser.refresh()
    two.devices(2)
    one.login("8", "oculto")
    two.browser.refresh()
    two.devices(1)
