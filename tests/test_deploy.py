"""docs/deploy agrees with the service: settings, ports, paths, times, and what Redis allows."""

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import NoPermissionError

from scripts.redis_server import RedisServer
from sesiones import tokens
from sesiones.server import STOP_SECONDS
from sesiones.settings import Settings
from tests.conftest import open_store

DEPLOY = Path(__file__).parents[1] / "docs" / "deploy"
TEXTS = {path.name: path.read_text("utf-8") for path in DEPLOY.iterdir()}
COMPOSE = yaml.safe_load(TEXTS["compose.yaml"])["services"]
MANIFESTS = {one["kind"]: one for one in yaml.safe_load_all(TEXTS["kubernetes.yaml"])}
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
PORT = Settings().port


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_variable_is_a_setting(name: str) -> None:
    known = {f"SESIONES_{setting.name.upper()}" for setting in fields(Settings)}
    assert set(re.findall(r"\bSESIONES_[A-Z_]+", TEXTS[name])) <= known


def test_the_image() -> None:
    text = TEXTS["Dockerfile"]
    assert f"EXPOSE {PORT}" in text
    assert 'CMD ["sesiones", "health"]' in text
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", text, re.MULTILINE)
    assert "--require-hashes" in text
    ignored = TEXTS["Dockerfile.dockerignore"].split()
    copied = re.findall(r"^COPY (?!--from)(.*) \./$", text, re.MULTILINE)
    assert {f"!{name}" for line in copied for name in line.split()} == set(ignored) - {"*"}


def test_compose() -> None:
    service = COMPOSE["sesiones"]
    assert service["healthcheck"]["test"] == ["CMD", "sesiones", "health"]
    assert service["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert seconds(service["stop_grace_period"]) > STOP_SECONDS
    for name, one in COMPOSE.items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in one.get("ports", [])), name
    assert "ports" not in COMPOSE["redis"]
    (scrape,) = yaml.safe_load(TEXTS["prometheus.yml"])["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"sesiones:{PORT}"]}]


def test_compose_mounts_what_there_is() -> None:
    for one in COMPOSE.values():
        for volume in one.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).is_file(), source


def test_systemd() -> None:
    unit = TEXTS["sesiones.service"]
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > STOP_SECONDS
    # Shared by the workers, a listening socket is closed by the first process alone.
    assert "\nKillMode=mixed\n" in unit


def test_kubernetes() -> None:
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in "Deployment", "PodDisruptionBudget":
        assert MANIFESTS[kind]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    assert MANIFESTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "sesiones"
    assert CONTAINER["ports"] == [{"name": "http", "containerPort": PORT}]
    assert MANIFESTS["Service"]["spec"]["ports"][0]["port"] == PORT
    ingress = MANIFESTS["NetworkPolicy"]["spec"]["ingress"][0]["ports"]
    assert ingress == [{"port": PORT, "protocol": "TCP"}]
    # A Service called sesiones would set SESIONES_PORT to a URL.
    assert POD["enableServiceLinks"] is False
    for probe, path in ("startup", "/readyz"), ("liveness", "/livez"), ("readiness", "/livez"):
        assert CONTAINER[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "http"}
    (_, pause) = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert POD["terminationGracePeriodSeconds"] > int(pause) + STOP_SECONDS


def rules() -> list[str]:
    """Of the user sesiones."""
    default, line = TEXTS["users.acl"].splitlines()
    assert default == "user default off"
    user, name, *rest = shlex.split(line)
    assert (user, name) == ("user", "sesiones")
    return rest


def test_the_user_of_redis_may_do_what_docs_acl_allows() -> None:
    line = next(
        line
        for line in (DEPLOY.parent / "acl.conf").read_text("utf-8").splitlines()
        if line.startswith("user sesiones ")
    )
    of_a_cluster = {"+cluster|slots", "+asking"}
    assert set(line.split()[2:]) - of_a_cluster <= set(rules())


@pytest.mark.anyio
async def test_the_user_of_redis_may_do_what_it_must_and_no_more() -> None:
    commands = {rule.removeprefix("+").replace("|", " ") for rule in rules() if rule[0] == "+"}
    with (
        RedisServer() as server,
        Redis(unix_socket_path=str(server.socket)) as admin,
        Redis(
            unix_socket_path=str(server.socket), username="sesiones", password="PASSWORD"
        ) as user,
    ):
        admin.execute_command("ACL", "SETUSER", "sesiones", *rules())
        store = open_store(f"unix://sesiones:PASSWORD@{server.socket}", max_per_user=2)
        created = [await store.create(7, "d") for _ in range(3)]
        found = [await store.find(sesion.Token_Sesion) for sesion in created]
        other, caller = (sesion for sesion in found if sesion is not None)  # one was ended
        assert await store.update(other._replace(Estado_Sesion=0)) is not None
        assert await store.end(caller.Token_Sesion, other.Token_Sesion) == 1
        assert await store.end_all(caller.Token_Sesion, tokens.make(8)) == 1
        await store.aclose()
        # Everything that the scripts call, on paths that this test did not take, too; but for
        # `sesiones doctor --deep`, whose user is in docs/operate.md.
        scripts = Path(__file__).parents[1] / "sesiones" / "lua"
        for script in set(scripts.iterdir()) - {scripts / "audit.lua"}:
            for command in re.findall(r"redis\.p?call\('([A-Z]+)'", script.read_text()):
                assert command.lower() in commands, (script.name, command)
        refused: list[tuple[Any, ...]] = [
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("CONFIG", "GET", "*"),
            ("SCRIPT", "FLUSH"),
            ("SHUTDOWN",),
            ("HSET", "another", "a", "b"),
            ("ACL", "LIST"),
        ]
        for words in refused:
            with pytest.raises(NoPermissionError):
                user.execute_command(*words)
