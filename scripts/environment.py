"""`.venv`, the virtual environment of the Makefile: made, and filled for a target, where need be.

``python -m scripts.environment test`` takes tenths of a second when nothing has changed. The
environment is made anew when it belongs to another Python or to another folder, or is broken;
packages are installed anew when pyproject.toml has changed.
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
# What .venv was made for. It is written last, so that an unfinished environment has none.
MARK = VENV / "made-for"

EXTRAS = {
    "run": "server,valkey",
    "load": "load",
    "test": "test",
    "gateways": "test,gateways",
    "openapi": "test,openapi",
    "browser": "test,browser",
    "wheel": "test,wheel",
}
"""The extras of pyproject.toml that a target needs."""
CONTAINED = {"load": ("run",), "test": ("run", "load")}
"""Targets whose packages another target's extras bring too."""


def main(target: str) -> int:
    """The exit code: 0, or that of the command that failed."""
    project = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    with _lock():
        try:
            if not _usable():
                _make()
            if _read(VENV / target) != project:
                pip = str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check"
                extras = f"{ROOT}[{EXTRAS[target]}]"
                subprocess.run([*pip, "install", "--editable", extras], check=True)
                for each in (target, *CONTAINED.get(target, ())):
                    (VENV / each).write_text(project)
        except subprocess.CalledProcessError as error:
            return error.returncode
    return 0


def _usable() -> bool:
    if _read(MARK) != _wanted():
        return False
    try:
        # Its Python may have been removed from the machine, or its packages from .venv.
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
    # The Python under the one that runs this, which may be that of an activated .venv.
    subprocess.run([_base(), "-m", "venv", "--clear", VENV], check=True)
    MARK.write_text(_wanted())


def _wanted() -> str:
    """The Python and the folder: an environment holds absolute paths of both."""
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
    """One at a time: another make may be filling the same environment."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
