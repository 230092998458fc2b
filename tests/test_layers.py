"""The layers of the package and of the tests: what each module may import, and what an import
loads."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.harness.service import environment

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sesiones"

LAYERS = ("redis_client", "store", "http", "cli")
"""From the lowest to the highest. A layer imports itself, lower ones and leaf modules."""
CLIENTS_MAY_IMPORT = {"http.credentials", "http.problems"}
"""Of the layer http: how a token is sent, and how a 503 is answered. Both run in an API node."""

Modules = Mapping[str, set[str]]
"""The modules of the package that each module imports, all without the prefix ``sesiones.``; the
name of the package itself is empty."""


def sources_of(package: Path) -> Iterator[tuple[str, str]]:
    """The name and the source of every module."""
    for path in package.rglob("*.py"):
        words = path.relative_to(package).with_suffix("").parts
        yield ".".join(word for word in words if word != "__init__"), path.read_text("utf-8")


@functools.cache  # the tests below change one module each
def import_nodes(source: str) -> list[ast.Import | ast.ImportFrom]:
    """The imports of a module, wherever they stand."""
    nodes = ast.walk(ast.parse(source))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def imports_of(sources: Mapping[str, str]) -> Modules:
    """Every import counts, wherever it stands: in a function and for the type checker, too."""
    found: dict[str, set[str]] = {}
    for module, source in sources.items():
        names: set[str] = set()
        for node in import_nodes(source):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            else:
                assert not node.level, f"{module} has a relative import"
                base = f"{node.module}."
                submodules = {a.name for a in node.names if _inside(base + a.name) in sources}
                names |= {base + name for name in submodules}
                if len(submodules) < len(node.names):
                    names.add(str(node.module))
        inside = {_inside(name) for name in names if name.partition(".")[0] == "sesiones"}
        found[module] = inside - {module}
    return found


def _inside(name: str) -> str:
    return name.removeprefix("sesiones").removeprefix(".")


def violations(modules: Modules) -> list[str]:
    """Imports that go up, leave a leaf module, or are not for clients; and a cycle."""
    found = []
    for module, imported in modules.items():
        home = module.partition(".")[0]
        for name in sorted(imported):
            target = name.partition(".")[0]
            if home in LAYERS:
                lower = LAYERS[: LAYERS.index(home) + 1]
                allowed = target not in (*LAYERS, "clients", "testing") or target in lower
            elif home == "clients":
                allowed = target not in (*LAYERS, "testing") or name in CLIENTS_MAY_IMPORT
            elif home in ("", "__main__"):
                allowed = target in {"": ("store", "sesion"), "__main__": ("signals", "cli")}[home]
            elif home == "testing":  # for the tests of an application: a store without Redis
                allowed = target not in ("http", "cli", "clients", "")
            else:
                allowed = target not in (*LAYERS, "clients", "testing", "")
            if not allowed:
                found.append(f"{module} imports {name or 'sesiones'}")
    try:
        TopologicalSorter(modules).prepare()
    except CycleError as error:
        found.append(f"a cycle: {' '.join(error.args[1])}")
    return found


def test_imports_go_down_and_make_no_cycle() -> None:
    modules = imports_of(dict(sources_of(PACKAGE)))
    assert set(LAYERS) < modules.keys()
    assert violations(modules) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("store.checks", "from sesiones.http.problems import Problem"),
        ("store.checks", "from sesiones.http import problems"),
        ("redis_client.single", "import sesiones.store.keys"),
        ("redis_client.single", "def late():\n    from sesiones import store"),
        ("http.app", "from sesiones.cli import main"),
        ("http.app", "if TYPE_CHECKING:\n    from sesiones.cli import main"),
        ("http.app", "import sesiones.clients.http"),
        ("cli.users", "import sesiones.clients.http"),
        ("tokens", "from sesiones.store import SessionStore"),
        ("settings", "from sesiones.redis_client import connect"),
        ("logs", "import sesiones.store.records"),
        ("metrics", "from sesiones import http"),
        ("sesion", "from sesiones import __version__"),
        ("a_new_leaf", "from sesiones import store"),
        ("clients.starlette", "from sesiones.http.app import create_app"),
        ("clients.starlette", "from sesiones.http import fast_check"),
        ("clients.fastapi", "from sesiones.http.authentication import Authentication"),
        ("clients.http", "from sesiones.cli import main"),
        ("clients.http", "from sesiones.store import SessionStore"),
        ("", "from sesiones import http"),
        ("__main__", "from sesiones import settings"),
        ("testing", "from sesiones.http.app import create_app"),
        ("store.runner", "from sesiones import testing"),
        # Cycles, within a layer and between leaf modules.
        ("redis_client.connection", "from sesiones.redis_client import cluster"),
        ("tokens", "from sesiones import sesion"),
        ("store.keys", "import sesiones"),
    ],
)
def test_violation_of_the_layers_is_found(module: str, line: str) -> None:
    sources = dict(sources_of(PACKAGE))
    sources[module] = f"{sources.get(module, '')}\n{line}\n"
    assert violations(imports_of(sources)) != []


def misplaced(path: str, source: str) -> list[str]:
    """What a module of the tests or of the scripts must not import: a test module; and in
    tests/harness, which both share, anything of either but the harness itself."""
    found = []
    for node in import_nodes(source):
        prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        names = [f"{prefix}{alias.name}" for alias in node.names]
        for name in names:
            top, *rest = name.split(".")
            if top == "tests" and any(word.startswith(("test_", "conftest")) for word in rest[:-1]):
                found.append(name)
            elif top in ("tests", "scripts") and path.startswith("tests/harness/"):
                found += [] if name.startswith("tests.harness.") else [name]
    return found


def test_no_test_module_is_imported_and_the_harness_imports_itself_alone() -> None:
    for folder in "tests", "scripts":
        for path in (ROOT / folder).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            if not name.startswith("tests/gateways/"):  # one suite, which shares its conftest.py
                assert misplaced(name, path.read_text("utf-8")) == [], name


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("tests/cli/test_users.py", "from tests.store.test_create import digest"),
        ("tests/conftest.py", "from tests.test_tokens import WELL_FORMED"),
        ("scripts/load.py", "import tests.test_tokens.WELL_FORMED"),
        ("tests/harness/stores.py", "from tests.redis_client.variants import VARIANTS"),
        ("tests/harness/stores.py", "from scripts.seed import positive"),
        ("tests/harness/stores.py", "def late():\n    import scripts"),
    ],
)
def test_misplaced_import_of_the_tests_is_found(path: str, line: str) -> None:
    assert misplaced(path, line) != []


WEB = {"starlette", "uvicorn", "httptools", "uvloop", "prometheus_client", "httpx", "sesiones.http"}


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("from sesiones import SessionStore; SessionStore.from_url('redis://h')", WEB),
        ("from sesiones import SyncSessionStore", WEB),
        ("from sesiones import Sesion, StoreUnavailable", WEB),
        ("import sesiones.cli", WEB),
        ("import sesiones.settings", WEB | {"redis", "orjson", "asyncio", "sesiones.store"}),
        ("import sesiones.logs", WEB | {"redis", "asyncio", "sesiones.store"}),
        (
            "import sesiones.signals",
            WEB | {"redis", "orjson", "asyncio", "logging", "socket", "sesiones.store"},
        ),
        ("import sesiones.clients.http", WEB - {"httpx"} | {"sesiones.store"}),
        ("import sesiones.testing", WEB),
        (
            "import sesiones.clients.fastapi",
            {"httpx", "redis", "sesiones.store", "sesiones.http.app", "sesiones.clients.http"},
        ),
        (
            "import sesiones.clients.starlette",
            (WEB | {"fastapi", "redis", "sesiones.store", "sesiones.http.app"})
            - {"starlette", "sesiones.http"},
        ),
    ],
)
def test_import_loads_no_more_than_it_needs(program: str, absent: set[str]) -> None:
    # What the site packages' own start files load does not count.
    assert not (loaded(program) - loaded("")) & absent


def test_server_loads_the_web_framework() -> None:
    """The test above would see it."""
    assert loaded("import sesiones.http.server") >= {"starlette", "uvicorn", "prometheus_client"}


@functools.cache
def loaded(program: str) -> set[str]:
    """The modules that are there after the program."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return set(shown.stdout.split())
