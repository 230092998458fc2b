"""The example website of docs/examples, as its user sees it in a browser."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

WAIT_SECONDS = 10


class Visitor:
    """A browser at the website, without a session."""

    def __init__(self, browser: WebDriver, origin: str) -> None:
        self.browser = browser
        self.origin = origin
        browser.execute_cdp_cmd("Network.clearBrowserCookies", {})

    def wait(self, condition: Callable[[], bool], expected: str) -> None:
        # Chromium's driver has an error of its own for a page that is just being left.
        wait = WebDriverWait(self.browser, WAIT_SECONDS, ignored_exceptions=[WebDriverException])
        wait.until(lambda _: condition(), expected)

    def text(self, selector: str = "body") -> str:
        return str(self.browser.find_element(By.CSS_SELECTOR, selector).text)

    def shows(self, text: str, selector: str = "body") -> None:
        """Waits until it does."""
        self.wait(lambda: text in self.text(selector), f"{text!r} in {selector}")

    def click(self, selector: str) -> None:
        self.browser.find_element(By.CSS_SELECTOR, selector).click()

    def leave(self, selector: str) -> None:
        """Click, and wait for the next page."""
        self.browser.execute_script("window.isLeft = true")
        self.click(selector)
        has_left = "return !window.isLeft && document.readyState === 'complete'"
        self.wait(lambda: self.browser.execute_script(has_left), "the next page")

    def login(self, user: str = "7", password: str = "secreto") -> None:
        self.browser.get(f"{self.origin}/auth/login")
        for name, value in (("usuario", user), ("contrasena", password)):
            self.browser.find_element(By.NAME, name).send_keys(value)
        self.leave("button")

    def devices(self, count: int) -> list[str]:
        """The devices that the page shows, once there are as many."""
        shown: list[str] = []

        def are_shown() -> bool:
            # In one call: the page may make its list anew between two.
            shown[:] = self.browser.execute_script(
                "return [...document.querySelectorAll('#devices li')].map(e => e.dataset.sesion)"
            )
            return len(shown) == count

        self.wait(are_shown, f"{count} devices")
        return shown

    def is_refused(self) -> None:
        """The page of the devices is a 401."""
        self.browser.get(f"{self.origin}/")
        assert "Falta una credencial válida." in self.text()

    def cookie(self) -> dict[str, Any] | None:
        """The session's cookie."""
        cookie: dict[str, Any] | None = self.browser.get_cookie("__Host-sesion")
        return cookie

    def fetch(self, url: str, **options: str) -> list[Any]:
        """What a script of the present page gets: the status and text, or an error's name. The
        status of a response that it may not read is 0."""
        script = """
            const [url, options, done] = arguments;
            fetch(url, {credentials: "include", ...options}).then(
                async (response) => done([response.status, await response.text()]),
                (error) => done([error.name, ""]),
            )"""
        answer: list[Any] = self.browser.execute_async_script(script, url, options)
        return answer

    def websocket(self, url: str) -> str:
        """The first message that a script of the present page gets, or "" when it does not open."""
        script = """
            const [url, done] = arguments, socket = new WebSocket(url);
            socket.onmessage = ({data}) => done(data);
            socket.onclose = () => done("")"""
        return str(self.browser.execute_async_script(script, url))

    def submit(self, url: str) -> None:
        """A form of the present page, by POST."""
        script = """
            const form = document.createElement("form");
            Object.assign(form, {action: arguments[0], method: "post"});
            document.body.append(form);
            form.submit()"""
        self.browser.execute_script(script, url)


@contextmanager
def other_pages(port: int = 0) -> Iterator[int]:
    """An empty page of another origin; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>other</title>")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
