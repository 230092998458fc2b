"""Passwords, certificates and service keys that change while nodes serve."""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from tests.harness.certificates import make_certificate
from tests.harness.ports import free_port
from tests.harness.redis_server import CONFIGURATION, RedisServer
from tests.harness.service import Service, comes_true
from tests.harness.stores import KEY, service_variables
from tests.runbooks.machines import Runbook, Start

pytestmark = [pytest.mark.redis, pytest.mark.slow]

ACL = (CONFIGURATION.parent / "docs" / "acl.conf").read_text("utf-8")


def answers(service: Service, token: str) -> bool:
    return service.request("GET", "/sesiones/self", {"x-auth-token": token}).status == 200


@contextmanager
def checked_all_the_time(service: Service, token: str) -> Iterator[None]:
    """Check the token again and again meanwhile: each check is a 200."""
    failed: list[int] = []
    done = threading.Event()

    def check() -> None:
        while not done.is_set():
            status = service.request("GET", "/sesiones/self", {"x-auth-token": token}).status
            failed.extend([status] if status != 200 else [])

    thread = threading.Thread(target=check)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert failed == []


@pytest.fixture
def guarded(start: Start, tmp_path: Path) -> Runbook:
    """A server with the users of docs/acl.conf, and an administrator."""
    users = tmp_path / "users.acl"
    users.write_text(
        ACL.replace(">PASSWORD", ">old-password")
        + "user admin on >admin ~* &* +@all\nuser default off ~* &* +@all\n"
    )
    runbook = start("redis", options={"aclfile": str(users)})
    runbook.variables |= {"REDISCLI_AUTH": "admin", "REDISCLI_USER": "admin"}
    return runbook


def url_with(runbook: Runbook, password: str) -> str:
    return runbook.machines["redis"].url.replace("//", f"//sesiones:{password}@")


def test_password_changes_without_a_failed_check(guarded: Runbook) -> None:
    def variables(password: str) -> dict[str, str]:
        return service_variables(url_with(guarded, password))

    with Service(**variables("old-password")) as old:
        token = old.new_session()["Token_Sesion"]
        guarded("Passwords", 0)
        with Service(**variables("new-password")) as new:
            with checked_all_the_time(old, token), checked_all_the_time(new, token):
                for _ in range(5):
                    shown = guarded("Passwords", 1)
                    assert re.match(r"[1-9]\d*\n", shown)  # connections were cut
            guarded("Passwords", 2)
            assert answers(old, token)  # over the connection that is open
            shown = guarded("Passwords", 1)
            assert answers(new, token)
            assert old.request("GET", "/sesiones/self", {"x-auth-token": token}).status == 503
            shown = guarded("Passwords", 1)
            assert "auth" in shown
            assert "sesiones" in shown
    # ACL SAVE: the new one outlives a restart, and the old one does not.
    machine = guarded.machines["redis"]
    machine.systemctl("stop")
    machine.systemctl("start")
    with Service(**variables("new-password")) as new:
        assert answers(new, token)


@pytest.fixture
def certificates(tmp_path: Path) -> list[tuple[Path, Path]]:
    """Two certificates of different authorities: each signs itself."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    return [make_certificate(folder) for folder in folders]


def test_authority_changes_without_a_failed_check(
    start: Start, certificates: list[tuple[Path, Path]], tmp_path: Path
) -> None:
    in_use = tmp_path / "redis" / "etc" / "tls"
    port = free_port()
    (tmp_path / "tls").mkdir()

    def renew(certificate: tuple[Path, Path], folder: Path) -> None:
        shutil.copy(certificate[0], folder / "redis.crt")
        shutil.copy(certificate[1], folder / "redis.key")

    renew(certificates[0], tmp_path / "tls")
    options = {
        "tls-port": str(port),
        "tls-cert-file": str(tmp_path / "tls" / "redis.crt"),
        "tls-key-file": str(tmp_path / "tls" / "redis.key"),
        "tls-auth-clients": "no",
    }
    try:
        runbook = start("redis", options=options)
    except subprocess.SubprocessError:
        pytest.skip("this server has no TLS")
    in_use.mkdir()
    trusted = tmp_path / "ca.pem"
    shutil.copy(certificates[0][0], trusted)
    url = f"rediss://127.0.0.1:{port}"
    variables = {"SESIONES_REDIS_CA_FILE": str(trusted)}
    runbook.variables |= {"SESIONES_REDIS_URL": url, **variables}
    with Service(**service_variables(url) | variables) as service:
        token = service.new_session()["Token_Sesion"]
        # The new authority first, then the certificate, then without the old authority.
        trusted.write_text("".join(path.read_text() for path, _ in certificates))
        renew(certificates[1], in_use)
        with checked_all_the_time(service, token):
            runbook("Certificates", 0)
            shown = runbook("Certificates", 1)
            assert "connection" not in shown
            shutil.copy(certificates[1][0], trusted)
            runbook("Certificates", 1)
        assert "notAfter=" in runbook("Certificates", 2, **{"127.0.0.1:6380": f"127.0.0.1:{port}"})
        # A fault shows at the next connection, not before.
        shutil.copy(certificates[0][0], trusted)
        assert answers(service, token)
        runbook.run("redis-cli CLIENT KILL TYPE normal SKIPME yes")
        assert not answers(service, token)
        shutil.copy(certificates[1][0], trusted)
        assert comes_true(lambda: answers(service, token), 10)


def test_two_service_keys_are_valid_at_the_same_time(
    redis_server: RedisServer, redis: "Redis"
) -> None:
    old, new = KEY, "n" * 32
    tokens: list[str] = []
    for keys, accepted in ((old, [old]), (f"{new},{old}", [old, new]), (new, [new])):
        with Service(
            **service_variables(redis_server.url) | {"SESIONES_SERVICE_KEY": keys}
        ) as service:
            for key in old, new:
                made = service.request(
                    "POST",
                    "/sesiones",
                    {
                        "Authorization": f"Bearer {key}",
                        "Content-Type": "application/x-www-form-urlencoded",
                    },
                    "ID_Usuario=7&Dispositivo=d",
                )
                assert made.status == (201 if key in accepted else 401)
                tokens += [made.json()["Token_Sesion"]] if made.status == 201 else []
            assert all(answers(service, token) for token in tokens)
