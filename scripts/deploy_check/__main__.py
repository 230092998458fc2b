"""`make deploy-check`: build the image, bring Compose up and start the systemd unit, with the
commands of docs/deploy/README.md, and use what runs there.

It needs root and Debian's buildah, podman, runc, netavark, aardvark-dns and debootstrap. Where they
are missing, it validates kubernetes.yaml and skips the rest with a message. Grafana is not in
Debian, so that service of Compose is left out.
"""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scripts.deploy_check import checks
from scripts.deploy_check.containers import ROOT, containers, make_debian, obstacle

README = (ROOT / "docs" / "deploy" / "README.md").read_text("utf-8")


def main() -> None:
    checks.kubernetes(ROOT / "docs" / "deploy" / "kubernetes.yaml")
    print("deploy-check: kubernetes.yaml is valid")
    if why := obstacle():
        print(f"deploy-check: skipped, because {why}")
        return
    begun = time.monotonic()
    make_debian()
    with containers() as engine:
        project = copy_project(engine.folder / "project")
        engine.make_base_images(download_wheels(engine.folder))
        say(begun, "Debian is there under the names of the base images")
        checks.image(engine, project)
        say(begun, "the image builds, serves and stops")
        checks.compose(engine, project, commands("mkdir -m 700"))
        say(begun, "Compose brings up the service, Redis and Prometheus, and runs doctor")
        checks.unit(engine, project, commands("python3 -m venv /opt/sesiones"))
        say(
            begun,
            "the systemd unit starts, is restarted, stops, and ends for good on exit code 2",
        )


def say(begun: float, text: str) -> None:
    print(f"deploy-check: {text} ({time.monotonic() - begun:.0f} s)", flush=True)


def commands(first: str) -> str:
    """The commands of the page's block that has this one."""
    (block,) = (
        block
        for block in re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
        if first in block
    )
    return str(block)


def copy_project(folder: Path) -> Path:
    """What git tracks, as anyone may read it, and the wheel."""
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    for name in tracked.split("\0")[:-1]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    pip("wheel", "--no-deps", "--wheel-dir", folder / "dist", ROOT)
    return folder


def download_wheels(folder: Path) -> Path:
    """What requirements.lock names, for Debian's Python whatever this one is."""
    lock = folder / "requirements.txt"
    text = (ROOT / "requirements.lock").read_text()
    lock.write_text(re.sub(r" ; [^\\]*\\", r" \\", text))  # those for other Pythons too
    which = "--no-deps", "--only-binary", ":all:", "--python-version", "3.11"
    pip("download", *which, "--require-hashes", "--requirement", lock, "--dest", folder / "wheels")
    return folder / "wheels"


def pip(*words: str | Path) -> None:
    command = sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
