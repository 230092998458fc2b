"""`make deploy-check` says why it cannot run; whether it finds a fault, its own asserts decide."""

import os
import shutil

import pytest

from scripts.deploy_check import containers


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has everything."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(containers, "PODMANS", [])
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.usefixtures("complete")
def test_complete_machine_is_no_obstacle() -> None:
    assert containers.obstacle() == ""


@pytest.mark.usefixtures("complete")
@pytest.mark.parametrize("program", containers.PROGRAMS)
def test_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == program else name)
    assert containers.obstacle() == f"{program} not installed"


@pytest.mark.usefixtures("complete")
def test_user_other_than_root_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in containers.obstacle()
