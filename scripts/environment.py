"""Make `.venv`, the virtual environment of the Makefile, and install what a target needs.

``python -m scripts.environment test`` takes tenths of a second when nothing has changed. It makes
the environment again when that belongs to another Python or to another folder, or is broken, and
installs the packages again when pyproject.toml has changed.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# Names the Python and the folder of .venv. It is written last, so an unfinished one lacks it.
MADE_FOR = VENV / "made-for"

EXTRAS = {
    "run": "server,valkey",
    "load": "load",
    "test": "test",
    "redis8": "test,redis8",
    "example": "example",
    "gateways": "test,gateways,browser",
    "openapi": "test,openapi",
    "browser": "test,browser",
    "wheel": "test,wheel",
    "deploy": "test,deploy",
}
"""The extras of pyproject.toml that a target needs."""
INCLUDED = {"load": ("run",), "test": ("run", "load"), "example": ("run",)}
"""The targets whose packages a target's extras bring too."""


def main(target: str) -> int:
    """Return the exit code: 0, or that of the command that failed."""
    project = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    with _lock():
        try:
            if not _usable():
                _make()
            if _read(VENV / target) != project:
                pip = str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check"
                extras = f"{ROOT}[{EXTRAS[target]}]"
                subprocess.run([*pip, "install", "--editable", extras], check=True)
                for each in (target, *INCLUDED.get(target, ())):
                    (VENV / each).write_text(project)
        except subprocess.CalledProcessError as error:
            return error.returncode
    return 0


def _usable() -> bool:
    if _read(MADE_FOR) != _wanted():
        return False
    try:
        # The Python may be gone from the machine, or the packages from .venv.
        tried = subprocess.run([PYTHON, "-c", "import pip"], stderr=subprocess.DEVNULL)
    except OSError:
        return False
    return tried.returncode == 0


def _make() -> None:
    if find_spec("ensurepip") is None:
        sys.exit(
            f"make: {sys.executable} lacks the module ensurepip, which makes a virtual environment "
            "(Debian and Ubuntu: apt install python3-venv)"
        )
    # The Python that runs this may be that of an activated .venv: use the one below it.
    subprocess.run([_base(), "-m", "venv", "--clear", VENV], check=True)
    MADE_FOR.write_text(_wanted())


def _wanted() -> str:
    """The Python and the folder. An environment holds absolute paths of both."""
    return f"{sys.version_info[0]}.{sys.version_info[1]} {os.path.realpath(_base())}\n{VENV}\n"


def _base() -> str:
    return str(getattr(sys, "_base_executable", sys.executable))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@contextmanager
def _lock() -> Iterator[None]:
    """Wait for another make that fills the same environment."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
