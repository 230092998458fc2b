"""`make`'s virtual environment, in a small project of its own: no package index is asked."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.service import environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

BACKEND = """
import zipfile

def build_editable(folder, settings=None, metadata=None):
    with zipfile.ZipFile(f"{folder}/small-1-py3-none-any.whl", "w") as wheel:
        names = "server", "valkey", "load", "test"
        extras = "".join(f"Provides-Extra: {name}\\n" for name in names)
        metadata = f"Metadata-Version: 2.1\\nName: small\\nVersion: 1\\n{extras}"
        wheel.writestr("small-1.dist-info/METADATA", metadata)
        wheel.writestr("small-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("small-1.dist-info/RECORD", "")
        wheel.writestr("small.py", "")
    with open("installed", "a") as log:
        log.write("once\\n")
    return "small-1-py3-none-any.whl"

build_wheel = build_editable
"""


class Project:
    """A project whose packages are itself alone, and whose `make run` does nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", folder)
        for name in "__init__.py", "environment.py":
            shutil.copy(ROOT / "scripts" / name, folder / "scripts")
        (folder / "scripts" / "run.py").write_text("print('it runs')\n")
        (folder / "backend.py").write_text(BACKEND)
        self.describe("1")

    def describe(self, version: str) -> None:
        (self.folder / "pyproject.toml").write_text(
            f"# {version}\n[build-system]\nrequires = []\nbuild-backend = 'backend'\n"
            "backend-path = ['.']\n[project]\nname = 'small'\nversion = '1'\n"
        )

    def make(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", *arguments],
            cwd=self.folder,
            env=environment() | {"PIP_NO_INDEX": "1"} | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )

    @property
    def installations(self) -> int:
        log = self.folder / "installed"
        return log.read_text().count("once") if log.exists() else 0

    @property
    def python(self) -> str:
        return os.path.realpath(self.folder / ".venv" / "bin" / "python")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "a project")


def python_that_is(version: tuple[int, ...], folder: Path) -> str:
    """This Python, but for the version that it gives."""
    program = folder / f"python{version[0]}.{version[1]}"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || exit 9\n'
        f'exec {sys.executable} -c "import sys; sys.version_info = {version}; $2"\n'
    )
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("target", ["run", "test", "check", "wheel", ".venv/load"])
@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 10, 13)])
def test_python_that_is_too_old_is_one_line_and_makes_nothing(
    tmp_path: Path, target: str, version: tuple[int, ...]
) -> None:
    project = Project(tmp_path / "project")
    python = python_that_is((*version, "final", 0), tmp_path)  # type: ignore[arg-type]
    before = sorted(project.folder.rglob("*"))
    made = project.make(target, f"PYTHON={python}")
    assert made.returncode != 0
    line, of_make = made.stderr.splitlines()
    assert f"{version[0]}.{version[1]}" in line
    assert "3.11" in line
    assert "PYTHON=" in line
    assert of_make.startswith("make: ***")
    assert made.stdout == ""
    assert sorted(project.folder.rglob("*")) == before


def test_python_that_is_not_there_is_one_line(project: Project) -> None:
    made = project.make("run", "PYTHON=python3.99")
    assert made.returncode != 0
    assert made.stderr.count("\n") == 2
    assert not (project.folder / ".venv").exists()


def test_environment_is_made_once_and_filled_when_the_project_changes(project: Project) -> None:
    for _ in range(2):
        made = project.make("run")
        assert made.stdout == "it runs\n", made.stderr
        assert project.installations == 1
    begun = time.monotonic()
    project.make("run")
    assert time.monotonic() - begun < 5  # some tenths of a second; an installation takes more
    project.describe("2")
    project.make(".venv/test")
    assert project.installations == 2
    project.make("run")  # whose packages came with the others
    assert project.installations == 2


def test_environment_without_an_installation_is_not_believed(project: Project) -> None:
    backend = project.folder / "backend.py"
    backend.write_text("raise RuntimeError('no network')\n")
    assert project.make("run").returncode != 0
    backend.write_text(BACKEND)
    assert project.make("run").stdout == "it runs\n"
    assert project.installations == 1


def remove_python(venv: Path) -> None:
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/nowhere/python")


def remove_packages(venv: Path) -> None:
    shutil.rmtree(next(venv.glob("lib/python3.*/site-packages")))


def leave_half(venv: Path) -> None:
    shutil.rmtree(venv)
    (venv / "bin").mkdir(parents=True)
    (venv / "run").touch()


def leave_none(venv: Path) -> None:
    shutil.rmtree(venv)


@pytest.mark.parametrize("damage", [remove_python, remove_packages, leave_half, leave_none])
def test_broken_environment_is_made_anew(project: Project, damage: Callable[[Path], None]) -> None:
    project.make("run")
    damage(project.folder / ".venv")
    made = project.make("run")
    assert made.stdout == "it runs\n", made.stderr
    assert project.python == os.path.realpath(sys.executable)
    assert project.installations == 2


def test_environment_of_a_folder_that_was_moved_is_made_anew(project: Project) -> None:
    project.make("run")
    project.folder = project.folder.rename(project.folder.parent / "elsewhere")
    assert project.make("run").stdout == "it runs\n"
    assert project.installations == 2
    pip = (project.folder / ".venv" / "bin" / "pip").read_text()
    assert str(project.folder) in pip


def another_python() -> str | None:
    """One that sesiones works with, and that is not this one."""
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    folders += Path(sys.base_prefix).parent.glob("*/bin")
    for minor in range(11, 20):
        for folder in folders:
            path = folder / f"python3.{minor}"
            said = path.exists() and subprocess.run(
                [path, "-c", "import sys, ensurepip; print(sys.version_info[1])"],
                capture_output=True,
                text=True,
            )
            if said and said.stdout.strip() == str(minor) and minor != sys.version_info[1]:
                return str(path)
    return None


def test_environment_of_another_python_is_made_anew(project: Project) -> None:
    another = another_python()
    if another is None:
        pytest.skip("there is no other Python")
    project.make("run")
    for python in another, sys.executable:
        for _ in range(2):
            made = project.make("run", f"PYTHON={python}")
            assert made.stdout == "it runs\n", made.stderr
            assert project.python == os.path.realpath(python)
    assert project.installations == 3


def test_environment_that_is_activated_is_kept_and_can_be_made_anew(project: Project) -> None:
    project.make("run")
    binaries = project.folder / ".venv" / "bin"
    activated = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    assert project.make("run", PATH=activated).stdout == "it runs\n"
    assert project.installations == 1
    (project.folder / ".venv" / "made-for").unlink()
    assert project.make("run", PATH=activated).stdout == "it runs\n"
    assert project.installations == 2


def test_several_makes_at_a_time_install_once(project: Project) -> None:
    several = [
        subprocess.Popen(
            ["make", "run"],
            cwd=project.folder,
            env=environment() | {"PIP_NO_INDEX": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    assert [each.communicate(timeout=120)[0] for each in several] == ["it runs\n"] * 3
    assert project.installations == 1
