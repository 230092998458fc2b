"""`make deploy-check` says why it cannot run; whether it finds a fault, its own asserts decide."""

import os
import shutil
import socket

import pytest

from scripts.deploy_check import containers


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has everything."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(containers, "PODMANS", [])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(containers, "may_unshare", lambda: True)
    monkeypatch.setattr(containers, "PORTS", ())


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


@pytest.mark.usefixtures("complete")
def test_machine_without_namespaces_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "may_unshare", lambda: False)
    assert "namespaces" in containers.obstacle()


@pytest.mark.usefixtures("complete")
def test_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(containers, "PORTS", (port,))
        assert containers.obstacle() == f"port {port} of loopback is in use"
