"""What must work: the manifests of Kubernetes, the image, Compose, and the systemd unit."""

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import kubernetes_validate
import orjson
import yaml

from scripts.deploy_check.containers import Containers
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer, wait_until

KEY = "k" * 32
HARDENED = "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"
PYTHON_IMAGE = "docker.io/library/python:3.11-slim-bookworm"


def ask(url: str, key: str = "", form: bytes | None = None) -> Any:
    """The body of a 200 or 201; None when there is no such answer (yet)."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(url, form, headers)  # noqa: S310, of this machine
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310
            text = reply.read()
            return orjson.loads(text) if text.startswith(b"{") else text
    except OSError:
        return None


def use(url: str, key: str) -> None:
    """A session is created, and found."""
    wait_until(lambda: ask(f"{url}/readyz") is not None, f"{url}/readyz", 60)
    made = ask(f"{url}/sesiones", key, b"ID_Usuario=7&Dispositivo=d")
    assert ask(f"{url}/sesiones/self", made["Token_Sesion"])["ID_Sesion"] == made["ID_Sesion"]


def kubernetes(file: Path) -> None:
    """Against the schemas of the oldest version that it names, and of the newest one."""
    for manifest in yaml.safe_load_all(file.read_text("utf-8")):
        for version in "1.25", kubernetes_validate.latest_version():
            kubernetes_validate.validate(manifest, version, strict=True)


def image(engine: Containers, project: Path) -> None:
    """As `docker build` and `docker run` of it, hardened as in Compose and Kubernetes."""
    file = project / "docs" / "deploy" / "Dockerfile"
    build = "build", "--isolation=chroot", "--pull-never", "--format=docker", f"--file={file}"
    engine.buildah(*build, "--tag=sesiones", project)
    run = "run", "--rm", "--network=host", *HARDENED
    without_key = subprocess.run(
        ["podman", *engine.storage, *run, "localhost/sesiones"],
        env=engine.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert without_key.returncode == 2, without_key
    assert "set SESIONES_SERVICE_KEY" in without_key.stderr
    port = free_port()
    settings = {"SESIONES_PORT": port, "SESIONES_SERVICE_KEY": KEY, "SESIONES_WORKERS": 2}
    with RedisServer(port=str(free_port())) as redis:
        variables = {f"--env={name}={value}" for name, value in settings.items()}
        detached = *run[:1], "--detach", *run[2:]
        named = "--name=image", f"--env=SESIONES_REDIS_URL={redis.url}", *variables
        engine.podman(*detached, *named, "localhost/sesiones")
        use(f"http://127.0.0.1:{port}", KEY)
        engine.podman("healthcheck", "run", "image")
        assert engine.podman("exec", "image", "id", "-u") == "10001"
        engine.podman("stop", "--time=15", "image")
    assert engine.podman("inspect", "image", "--format={{.State.ExitCode}}") == "0"


def compose(engine: Containers, project: Path, secrets: str) -> None:
    """``secrets``: the block whose lines from `mkdir` to `docker compose` make the files."""
    first = secrets.index("mkdir")
    engine.run("sh", "-ec", secrets[first : secrets.index("docker compose")], folder=project)
    file = project / "docs" / "deploy" / "compose.yaml"
    storage = f"--podman-args={' '.join(engine.storage)}"
    podman_compose = sys.executable, "-m", "podman_compose", storage, f"--file={file}"

    def run(*words: str) -> str:
        return engine.run(*podman_compose, *words, folder=project)

    services = "sesiones", "redis", "prometheus"
    run("up", "--detach", *services)
    key = (project / "docs/deploy/secrets/service_key").read_text().strip()
    use("http://127.0.0.1:8000", key)
    for name in "sesiones", "redis":  # no systemd here runs them every few seconds
        engine.podman("healthcheck", "run", f"sesiones_{name}_1")
    doctor = "run", "--rm", "-T", "operator", "doctor", "--deep", "--json"
    said = run("--profile=operator", *doctor)  # first, what building the image says
    findings = orjson.loads(said[said.rindex("[{") :])
    assert [each for each in findings if each["level"] != "ok"] == []
    wait_until(is_scraped, "Prometheus to scrape the service", 60)
    groups = ask("http://127.0.0.1:9090/api/v1/rules")["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    run("down", "--volumes", "--timeout=15")


def is_scraped() -> bool:
    targets = ask("http://127.0.0.1:9090/api/v1/targets")
    return targets is not None and [t["health"] for t in targets["data"]["activeTargets"]] == ["up"]


def unit(engine: Containers, project: Path, installation: str) -> None:
    """The block of commands is run in a container, whose first process is systemd."""
    install, _, start = installation.partition("systemctl")
    container = engine.buildah("from", PYTHON_IMAGE)
    source = f"--volume={project}:/src:ro", "--workingdir=/src"
    engine.buildah("run", "--isolation=chroot", *source, container, "sh", "-ec", install)
    masked = "redis-server.service", "prometheus.service"
    engine.buildah("run", "--isolation=chroot", container, "systemctl", "mask", *masked)
    engine.buildah("commit", "--rm", container, "unit")
    # systemd gives a service its credentials by a mount, which needs a shared root.
    first = "mount --make-rshared / && exec /lib/systemd/systemd"
    with RedisServer(port="6379", aclfile=str(project / "docs" / "acl.conf")):
        run = "run", "--detach", "--name=unit", "--privileged", "--systemd=always", "--network=host"
        engine.podman(*run, "--entrypoint=sh", "localhost/unit", "-c", first)

        def inside(*words: str, check: bool = True) -> str:
            return engine.podman("exec", "unit", *words, check=check)

        def state(*names: str) -> dict[str, str]:
            shown = inside("systemctl", "show", "sesiones", *(f"--property={n}" for n in names))
            return dict(line.split("=", 1) for line in shown.splitlines())

        wait_until(
            lambda: inside("systemctl", "is-system-running", check=False) == "running", "systemd"
        )
        inside("sh", "-ec", f"systemctl{start}")
        key = inside("cat", "/etc/sesiones/service_key")
        use("http://127.0.0.1:8000", key)
        inside("systemctl", "kill", "--signal=KILL", "sesiones")
        wait_until(lambda: state("NRestarts") == {"NRestarts": "1"}, "the restart")
        use("http://127.0.0.1:8000", key)
        inside("systemctl", "stop", "sesiones")
        ended = {"Result": "success", "ExecMainStatus": "0"}
        assert state(*ended) == ended
        # A bad setting is not tried again: it would be bad again.
        inside("sh", "-c", "echo SESIONES_IDLE_SECONDS=x >/etc/sesiones/env")
        inside("systemctl", "start", "sesiones", check=False)
        ended = {"ActiveState": "failed", "ExecMainStatus": "2", "NRestarts": "0"}
        wait_until(lambda: state("ActiveState") == {"ActiveState": "failed"}, "exit code 2")
        assert state(*ended) == ended
