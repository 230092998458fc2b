"""buildah and podman with a storage of their own, and Debian under the names of the base images.

The base images come from a registry, which a machine that tests may not reach. So debootstrap makes
one root file system, and an image of it stands in for each: it has the same programs, in Debian's
versions.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "var" / "deploy-check" / "debian"
"""The root file system. It is kept for the next run; `make clean` removes it."""
SUITE = "bookworm"
PACKAGES = "python-is-python3,python3-venv,python3-pip,redis-server,prometheus,systemd,dbus"
PROGRAMS = "buildah", "debootstrap", "podman", "runc"
"""What the check needs, beside two that podman has in a folder of its own."""
PODMANS = [Path("/usr/lib/podman") / name for name in ("netavark", "aardvark-dns")]
PORTS = 6379, 8000, 9090
"""Of Redis, the service and Prometheus, as the files of docs/deploy have them."""
# Some sandboxes allow no higher limits than these, and have no systemd that runs containers.
CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""


def obstacle() -> str:
    """Why the check cannot run on this machine; "" when it can."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    missing += [path.name for path in PODMANS if not path.exists()]
    if missing:
        return f"{', '.join(missing)} not installed"
    if os.geteuid() != 0:
        return "only root can make file systems and networks"
    if not may_unshare():
        return "this machine allows no namespaces"
    taken = [str(port) for port in PORTS if is_taken(port)]
    return f"port {', '.join(taken)} of loopback is in use" if taken else ""


def may_unshare() -> bool:
    """Whether a process may have mounts and networks of its own, as each container has."""
    command = "unshare", "--mount", "--net", "true"
    return subprocess.run(command, capture_output=True).returncode == 0


def is_taken(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Containers:
    """Runs buildah and podman. ``folder``: where their storage is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = f"--root={folder}/storage", f"--runroot={folder}/run"
        configuration = folder / "containers.conf"
        configuration.write_text(CONFIGURATION)
        self.environment = os.environ | {"CONTAINERS_CONF": str(configuration)}

    def buildah(self, *words: str | Path) -> str:
        return self.run("buildah", *self.storage, *words)

    def podman(self, *words: str | Path, check: bool = True) -> str:
        return self.run("podman", *self.storage, *words, check=check)

    def run(self, *words: str | Path, folder: Path | None = None, check: bool = True) -> str:
        """Standard output. When the command fails, the check ends with all that it has written."""
        ended = subprocess.run(
            words, cwd=folder, env=self.environment, capture_output=True, text=True, timeout=600
        )
        if check and ended.returncode:
            sys.exit(f"{ended.stdout}{ended.stderr}{words[0]}: exit code {ended.returncode}")
        return ended.stdout.strip()

    def make_base_images(self, wheels: Path) -> None:
        """``wheels``: what pip finds in them, in the place of an index."""
        container = self.buildah("from", "scratch")
        root = Path(self.buildah("mount", container))
        self.run("cp", "--archive", f"{DEBIAN}/.", root)
        shutil.copytree(wheels, root / "wheels")
        (root / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        for folder, owner in ("data", 999), ("prometheus", 65534):  # as in the real images
            (root / folder).mkdir()
            os.chown(root / folder, owner, owner)
        shutil.rmtree(root / "etc/redis")  # Debian's own, which only its user may read
        self.buildah("commit", container, "docker.io/library/python:3.11-slim-bookworm")
        self.buildah("tag", "python:3.11-slim-bookworm", "docker.io/library/redis:7.2-bookworm")
        entrypoint = "--entrypoint", '["prometheus"]', "--cmd", "", "--user", "65534"
        self.buildah("config", *entrypoint, container)
        self.buildah("commit", container, "docker.io/prom/prometheus:v3.5.0")
        self.buildah("rm", container)


@contextmanager
def containers() -> Iterator[Containers]:
    """A storage, and at the end nothing of it, nor of what runs in it."""
    DEBIAN.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=DEBIAN.parent))
    made = Containers(folder)
    try:
        yield made
    finally:
        made.podman("rm", "--force", "--all", "--time", "2", check=False)
        made.podman("network", "prune", "--force", check=False)
        made.buildah("rm", "--all")
        made.run("umount", folder / "storage/overlay", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def make_debian() -> None:
    """The root file system, from the mirror that this machine's apt uses."""
    if DEBIAN.exists():
        return
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True
    )
    partial = DEBIAN.with_name("partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = "debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(partial)
    ended = subprocess.run([*command, *targets.stdout.split()[:1]], capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{ended.stdout}{ended.stderr}debootstrap: exit code {ended.returncode}")
    (partial / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
    partial.rename(DEBIAN)
