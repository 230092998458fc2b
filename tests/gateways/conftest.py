"""Fixtures: sesiones on two nodes, an application that remembers what reached it, and each gateway
of docs/gateways between the two.

What a gateway cannot do is declared in CANNOT, and nowhere else.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import pytest

from scripts.gateways import GATEWAYS, Gateway, RunningGateway
from tests.gateways import table
from tests.gateways.client import EventStream
from tests.gateways.stand import Application, Backend, Stand, token
from tests.harness.redis_server import RedisServer

MODULES = [
    "test_passes",
    "test_forwarding",
    "test_streams",
    "test_hidden",
    "test_check",
    "test_failures",
    "test_connections",
    "test_long_stream",
]
OF_WEBSITES = ["test_web", "test_cors", "test_browser"]
"""The order of the tests of a gateway, and so of the rows of the tables."""
OF_TWO_NODES = {"test_failures", "test_connections"}
"""What Traefik alone does not do where it asks one address: docs/gateways/traefik.md."""

HAPROXY_CHUNKS = (
    "HAProxy would pass a chunked body's trailers on, and with them an identity of the client's "
    "own; its configuration refuses such bodies with a 411."
)
CANNOT = {
    ("Traefik", "test_dots"): "Traefik cleans a path of `.`, `..` and `//` before anything else "
    "(`sanitizePath`, which is best left on).",
    ("HAProxy", "test_chunked_body"): HAPROXY_CHUNKS,
    ("HAProxy", "test_chunked_body_refused"): HAPROXY_CHUNKS,
}
"""(gateway, test) to the reason. Such a test has to fail: once it passes, the entry must go. That
nothing passes without a session must never be declared here."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--table",
        choices=["check", "write"],
        help="what to do with the tables of docs/gateways/README.md",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if not _applies(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = filter(_applies, items)
    for item in items:
        if gateway := _gateway_of(item):
            item.add_marker(pytest.mark.xdist_group(gateway.id))
            if reason := CANNOT.get((gateway.name, item.originalname)):  # type: ignore[attr-defined]
                item.add_marker(pytest.mark.xfail(reason=reason))
    items.sort(key=_place)


def _applies(item: pytest.Item) -> bool:
    gateway = _gateway_of(item)
    if gateway is None:
        return True
    module = item.path.stem
    if module in OF_WEBSITES:
        return gateway.variant == "web"
    return module not in OF_TWO_NODES or gateway.variant != "direct"


def _place(item: pytest.Item) -> tuple[int, int]:
    """Gateway by gateway, so that each one starts once."""
    gateway = _gateway_of(item)
    if gateway is None:  # of another folder
        return -1, 0
    return GATEWAYS.index(gateway), (MODULES + OF_WEBSITES).index(item.path.stem)


def _gateway_of(item: pytest.Item) -> Gateway | None:
    callspec = getattr(item, "callspec", None)
    return callspec and callspec.params.get("gateway")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    gateway = _gateway_of(item)
    assert gateway is not None
    row = item.obj.__doc__.strip()  # type: ignore[attr-defined]
    if report.when == "setup":  # also of what is skipped
        module, line = item.path.stem, item.obj.__code__.co_firstlineno  # type: ignore[attr-defined]
        place = module in OF_WEBSITES, _place(item)[1], line
        report.user_properties.append(("row", (row, place)))
    elif report.when == "call":
        reason = "It failed." if report.failed else getattr(report, "wasxfail", None)
        report.user_properties.append(("cell", (row, gateway.name, reason)))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Also in the process that collects the reports of others."""
    for name, values in report.user_properties:
        if name == "row":
            table.place(*values)  # type: ignore[misc]
        elif name == "cell":
            table.record(*values)  # type: ignore[misc]


def pytest_sessionfinish(session: pytest.Session) -> None:
    wanted = session.config.getoption("--table")
    if not wanted or hasattr(session.config, "workerinput"):
        return
    rendered = table.render()
    if wanted == "write":
        table.write(rendered)
    elif table.committed() != rendered:
        print("\nThe tables of docs/gateways/README.md do not say this: make gateways-table")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def application() -> Iterator[Application]:
    with Application() as application:
        yield application


@pytest.fixture(scope="session")
def backend(application: Application) -> Iterator[Backend]:
    with RedisServer() as redis, Backend(redis, application) as backend:
        yield backend


@pytest.fixture(scope="session", params=GATEWAYS, ids=lambda gateway: gateway.id)
def gateway(request: pytest.FixtureRequest) -> Gateway:
    gateway: Gateway = request.param
    if gateway.binary() is None:
        pytest.skip(f"{gateway.name} is not installed: {gateway.install}")
    return gateway


@pytest.fixture(scope="session")
def running(gateway: Gateway, backend: Backend) -> Iterator[RunningGateway]:
    with RunningGateway(gateway, backend.ports, backend.application.port) as running:
        yield running


@pytest.fixture(scope="session")
def long_stream(running: RunningGateway, backend: Backend) -> Iterator[EventStream]:
    """Opened before the gateway's first test, and read by its last one."""
    with closing(EventStream(running.port, token(backend.new_session()))) as stream:
        yield stream


@pytest.fixture
def stand(
    gateway: Gateway, running: RunningGateway, backend: Backend, long_stream: EventStream
) -> Iterator[Stand]:
    backend.application.arrived.clear()
    backend.application.wrong_identity.clear()
    yield Stand(gateway, running, backend)
    assert not backend.application.wrong_identity


@pytest.fixture
def session(backend: Backend) -> dict[str, Any]:
    return backend.new_session()


@pytest.fixture(scope="session")
def logged(gateway: Gateway, backend: Backend) -> Iterator[Stand]:
    """The gateway in front of nodes that log every request."""
    with (
        Backend(backend.redis, backend.application, SESIONES_ACCESS_LOG="1") as logged,
        RunningGateway(gateway, logged.ports, backend.application.port) as running,
    ):
        yield Stand(gateway, running, logged)
