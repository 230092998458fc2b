"""docs/deploy agrees with the service: settings, ports, paths, times, and what Redis allows."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.retry import Retry

import sesiones
from sesiones import tokens
from sesiones.cli.exits import Exit
from sesiones.http.server import STOP_SECONDS
from sesiones.settings import Settings
from tests.harness.redis_binary import find_binary
from tests.harness.redis_server import CONFIGURATION, wait_until
from tests.harness.service import environment
from tests.harness.stores import open_store

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
TEXTS = {path.name: path.read_text("utf-8") for path in DEPLOY.iterdir()}
COMPOSE_FILE = yaml.safe_load(TEXTS["compose.yaml"])
COMPOSE = COMPOSE_FILE["services"]
MANIFESTS = {one["kind"]: one for one in yaml.safe_load_all(TEXTS["kubernetes.yaml"])}
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
PORT = Settings().port


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_variable_is_a_setting(name: str) -> None:
    known = {f"SESIONES_{setting.name.upper()}" for setting in fields(Settings)}
    known |= {"SESIONES_REDIS_URL_FILE", "SESIONES_SERVICE_KEY_FILE"}
    assert set(re.findall(r"\bSESIONES_[A-Z_]+", TEXTS[name])) <= known


def test_image_has_port_user_health_check_and_locked_packages() -> None:
    text = TEXTS["Dockerfile"]
    assert f"EXPOSE {PORT}" in text
    assert 'CMD ["sesiones", "health"]' in text
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", text, re.MULTILINE)
    # The image and the unit install the same: what the lock has, and no package besides.
    for installation in text, TEXTS["README.md"]:
        assert "--require-hashes" in installation
        # By name: with the wheels of two versions in dist/, it is the newer one.
        assert re.search(r"--no-index\s[^&]*--find-links \S+ 'sesiones\[server\]'", installation)
    ignored = TEXTS["Dockerfile.dockerignore"].split()
    copied = re.findall(r"^COPY (?!--from)(.*) \./$", text, re.MULTILINE)
    assert {f"!{name}" for line in copied for name in line.split()} == set(ignored) - {"*"}


def test_compose_is_hardened_and_publishes_loopback_alone() -> None:
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


def test_compose_mounts_files_that_exist() -> None:
    for one in COMPOSE.values():
        for volume in one.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).is_file(), source


def test_compose_gives_each_container_the_secrets_that_it_names() -> None:
    files = {name: secret["file"] for name, secret in COMPOSE_FILE["secrets"].items()}
    used = set()
    for name, one in COMPOSE.items():
        named = set(re.findall(r"/run/secrets/(\w+)", str(one)))
        assert named == set(one.get("secrets", [])), name
        used |= named
    assert used == files.keys()
    # Each is made by the commands of the README, in a folder that git leaves out.
    made = re.search(r"mkdir -m 700 (\S+)$(.*?)^```$", TEXTS["README.md"], re.DOTALL | re.MULTILINE)
    assert made is not None
    assert set(re.findall(r">(\w+)", made[2])) == used
    assert {f"docs/deploy/{Path(file).parent}" for file in files.values()} == {made[1]}
    assert f"/{made[1]}/" in (DEPLOY.parents[1] / ".gitignore").read_text("utf-8").split()


def test_commands_of_the_readme_make_the_secrets(tmp_path: Path) -> None:
    commands = re.search(r"^mkdir -m 700 .*?operator_url\)$", TEXTS["README.md"], re.DOTALL | re.M)
    assert commands is not None
    (tmp_path / "docs" / "deploy").mkdir(parents=True)
    subprocess.run(["sh", "-ec", f"umask 077; {commands[0]}"], cwd=tmp_path, check=True)
    folder = tmp_path / "docs" / "deploy" / "secrets"
    assert folder.stat().st_mode & 0o777 == 0o700
    for name, secret in COMPOSE_FILE["secrets"].items():
        path = tmp_path / "docs" / "deploy" / secret["file"]
        assert path.stat().st_mode & 0o777 == 0o644, name  # a container's user reads it
    texts = {path.name: path.read_text().strip() for path in folder.iterdir()}
    settings = Settings.read(
        {
            "SESIONES_REDIS_URL": texts["redis_url"],
            "SESIONES_SERVICE_KEY": texts["service_key"],
        },
        {},
    )
    assert texts["redis_password"] in settings.redis_url


def test_unit_stops_in_time_and_reads_its_credentials() -> None:
    unit = TEXTS["sesiones.service"]
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > STOP_SECONDS
    # Shared by the workers, a listening socket is closed by the first process alone.
    assert "\nKillMode=mixed\n" in unit
    credentials = dict(re.findall(r"^LoadCredential=(\w+):(\S+)$", unit, re.MULTILINE))
    assert set(re.findall(r"_FILE=%d/(\w+)", unit)) == credentials.keys()
    for path in credentials.values():
        assert f">{path}" in TEXTS["README.md"]


def test_unit_gives_up_on_a_bad_setting() -> None:
    assert f"\nRestartPreventExitStatus={Exit.USAGE}\n" in TEXTS["sesiones.service"]


def test_manifests_agree_with_each_other_and_with_the_service() -> None:
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
    # The secret's names, as its command makes them, are those of its files.
    (mount,) = CONTAINER["volumeMounts"]
    (volume,) = POD["volumes"]
    assert mount["name"] == volume["name"]
    files = [variable["value"] for variable in CONTAINER["env"]]
    names = re.findall(r"--from-literal=(\w+)=", TEXTS["kubernetes.yaml"])
    assert files == [f"{mount['mountPath']}/{name}" for name in names]
    assert f"generic {volume['secret']['secretName']} " in TEXTS["kubernetes.yaml"]
    for probe, path in ("startup", "/readyz"), ("liveness", "/livez"), ("readiness", "/livez"):
        assert CONTAINER[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "http"}
    (_, pause) = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert POD["terminationGracePeriodSeconds"] > int(pause) + STOP_SECONDS


def test_network_policy_admits_gateways_of_labelled_namespaces() -> None:
    label = {"matchLabels": {"sesiones-client": "true"}}
    sources = MANIFESTS["NetworkPolicy"]["spec"]["ingress"][0]["from"]
    assert sources[:2] == [
        {"podSelector": label},
        {"podSelector": label, "namespaceSelector": label},
    ]


def test_monitor_scrapes_each_pod_once_as_the_job_of_the_rules() -> None:
    monitor = yaml.safe_load(TEXTS["servicemonitor.yaml"])["spec"]
    services = [
        one for one in yaml.safe_load_all(TEXTS["kubernetes.yaml"]) if one["kind"] == "Service"
    ]
    labels = monitor["selector"]["matchLabels"]
    (scraped,) = (one for one in services if one["metadata"].get("labels") == labels)
    assert scraped["metadata"]["name"] == "sesiones"  # it becomes the job
    assert [port["name"] for port in scraped["spec"]["ports"]] == [monitor["endpoints"][0]["port"]]
    (headless,) = (one for one in services if one is not scraped)
    assert headless["spec"] == {"clusterIP": "None"} | scraped["spec"]


def test_command_of_the_readme_makes_a_rule_of_the_alerts() -> None:
    command = re.search(r"^\{ printf .*?^\}", TEXTS["README.md"], re.DOTALL | re.MULTILINE)
    assert command is not None
    made = subprocess.check_output(["sh", "-ec", command[0]], cwd=DEPLOY.parents[1])
    rule = yaml.safe_load(made)
    assert rule["kind"] == "PrometheusRule"
    alerts = yaml.safe_load((DEPLOY.parent / "alerts.yml").read_text("utf-8"))
    assert rule["spec"] == alerts


def test_image_names_its_version() -> None:
    label = re.search(r'image\.version="(.*?)"', TEXTS["Dockerfile"])
    assert label is not None
    assert label[1] == sesiones.__version__
    assert CONTAINER["image"] == f"sesiones:{sesiones.__version__}"


def accepts(path: Path) -> bool:
    """Whether a server listens: the file of its socket is there a moment before."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextmanager
def compose_redis(folder: Path) -> Iterator[Path]:
    """The Redis of compose.yaml: its command on this machine's server, and the server's socket."""
    for name in "redis_password", "operator_password":
        (folder / name).write_text(f"{name}-WORD\n")
    (shell, flag, command) = COMPOSE["redis"]["command"]
    path = folder / "redis.sock"
    for there, here in (
        ("$$", "$"),
        ("/run/secrets", folder),
        ("/run/redis", folder),
        ("/etc/redis/redis.conf", CONFIGURATION),
        ("/etc/redis", DEPLOY.parent),
        ("/data", folder),
        ("redis-server", find_binary()),
    ):
        assert there in command
        command = command.replace(there, str(here))
    process = subprocess.Popen(
        [shell, flag, f"{command} --port 0 --unixsocket {path} --logfile {folder}/log"]
    )
    try:
        wait_until(lambda: accepts(path), "Redis")
        yield path
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.mark.anyio
async def test_compose_redis_has_its_sessions_after_a_restart(tmp_path: Path) -> None:
    url = "unix://sesiones:redis_password-WORD@{}"
    with compose_redis(tmp_path) as path:
        async with open_store(url.format(path)) as store:
            token = (await store.create(7, "d")).Token_Sesion
    with compose_redis(tmp_path) as path:
        async with open_store(url.format(path)) as store:
            assert await store.find(token) is not None


@pytest.mark.anyio
async def test_compose_redis_lets_in_the_service_alone(tmp_path: Path) -> None:
    with (
        compose_redis(tmp_path) as path,
        Redis(
            unix_socket_path=str(path), username="sesiones", password="redis_password-WORD"
        ) as user,
        Redis(unix_socket_path=str(path), retry=Retry(NoBackoff(), 0)) as default,
    ):
        store = open_store(f"unix://sesiones:redis_password-WORD@{path}", max_per_user=2)
        created = [await store.create(7, "d") for _ in range(3)]
        found = [await store.find(sesion.Token_Sesion) for sesion in created]
        other, caller = (sesion for sesion in found if sesion is not None)  # one was ended
        assert await store.update(other._replace(Estado_Sesion=0)) is not None
        assert await store.end(caller.Token_Sesion, other.Token_Sesion) == 1
        assert await store.end_all(caller.Token_Sesion, tokens.make(8)) == 1
        await store.aclose()
        operator = sys.executable, "-m", "sesiones", "doctor", "--deep", "--json"
        url = f"unix://sesiones-operator:operator_password-WORD@{path}"
        ended = subprocess.run(  # noqa: ASYNC221
            operator, env=environment() | {"SESIONES_REDIS_URL": url}, capture_output=True
        )
        findings = orjson.loads(ended.stdout)
        assert [each for each in findings if each["level"] != "ok"] == []
        # What the health check asks.
        assert (
            '\neval "return 1" 0 '
            in "\n" + COMPOSE["redis"]["healthcheck"]["test"][1].split("--user sesiones ", 1)[1]
        )
        assert user.eval("return 1", 0) == 1
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
        with pytest.raises(AuthenticationError):
            default.ping()
