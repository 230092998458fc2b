"""`make wheel`: build the source distribution, and from that the wheel, and check their metadata.
Try the wheel in two empty environments: as a library without a web framework, and as a server with
the locked versions."""

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sesiones
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service

ROOT = Path(__file__).parents[1]
NAME = f"sesiones-{sesiones.__version__}"
WHEEL = ROOT / "dist" / f"{NAME}-py3-none-any.whl"
SOURCE = ROOT / "dist" / f"{NAME}.tar.gz"


def main() -> None:
    for built in SOURCE, WHEEL:
        built.unlink(missing_ok=True)
    # It makes the wheel of the unpacked source distribution.
    run(sys.executable, "-m", "build", "--outdir", str(WHEEL.parent), str(ROOT))
    run(sys.executable, "-m", "twine", "check", "--strict", str(SOURCE), str(WHEEL))
    with tarfile.open(SOURCE) as source, zipfile.ZipFile(WHEEL) as wheel:
        packed = {name.removeprefix(f"{NAME}/") for name in source.getnames()}
        packed_in_wheel = set(wheel.namelist())
    assert tracked() <= packed, tracked() - packed
    modules = {name for name in tracked() if name.startswith("sesiones/")}
    assert modules <= packed_in_wheel, modules - packed_in_wheel
    with environment() as binaries:
        pip(binaries, str(WHEEL))
        run(str(binaries / "pip"), "check")
        use_library(binaries)
    with environment() as binaries:
        pip(binaries, "--require-hashes", "--requirement", str(ROOT / "requirements.lock"))
        # Without an index: the lock has all that the extra needs.
        pip(binaries, "--no-index", f"{WHEEL}[server]")
        run(str(binaries / "pip"), "check")
        serve(str(binaries / "sesiones"))
    print(f"{WHEEL.relative_to(ROOT)}: works as a library, and serves; beside it {SOURCE.name}")


def tracked() -> set[str]:
    """The files of the project."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z"]
    return set(subprocess.check_output(listed, text=True).rstrip("\0").split("\0"))


@contextmanager
def environment() -> Iterator[Path]:
    """The programs of a virtual environment with nothing but pip."""
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        yield Path(directory) / "bin"


def pip(binaries: Path, *arguments: str) -> None:
    run(str(binaries / "pip"), "install", "--quiet", "--disable-pip-version-check", *arguments)


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)


LIBRARY = """
import asyncio, sys
from importlib.util import find_spec
from sesiones import SessionStore

async def live(url):
    async with SessionStore.from_url(url, timeout_seconds=5) as store:
        sesion = await store.create(7, "d")
        assert await store.find(sesion.Token_Sesion) == sesion
        assert await store.end(sesion.Token_Sesion, sesion.Token_Sesion) == 1
        assert await store.find(sesion.Token_Sesion) is None

asyncio.run(live(sys.argv[1]))
for package in "starlette", "uvicorn", "httptools", "uvloop", "prometheus_client":
    assert find_spec(package) is None, package
"""


def use_library(binaries: Path) -> None:
    """Use a store and every command but serve, which names the packages that it lacks."""
    with RedisServer() as redis:
        run(str(binaries / "python"), "-c", LIBRARY, redis.url)
        url = f"--redis-url={redis.url}"
        for command, code in (
            (["doctor", url], 0),
            (["users", "7", url], 0),
            (["health", "--port", str(free_port())], 1),
            (["serve", url], 2),
        ):
            ended = subprocess.run(
                [binaries / "sesiones", *command], capture_output=True, text=True, timeout=60
            )
            assert ended.returncode == code, (command, ended)
    assert ended.stderr == (
        "sesiones: serve needs the package uvicorn: pip install 'sesiones[server]'\n"
    )


def serve(command: str) -> None:
    """A session's life, and the files that the package carries beside its code."""
    version = subprocess.check_output([command, "--version"], text=True).strip()
    assert version == sesiones.__version__
    with RedisServer() as redis:
        service = Service(SESIONES_REDIS_URL=redis.url, SESIONES_REDIS_TIMEOUT="5")
        service.command = (command,)
        with service:
            json = {"Content-Type": "application/json"}
            creation = b'{"ID_Usuario": 7, "Dispositivo": "d"}'
            created = service.request("POST", "/sesiones", json, creation)
            token = created.json()["Token_Sesion"]
            caller, query = {"x-auth-token": token}, f"?Token_Sesion={token}"
            for status, method, path, headers, body in (
                (200, "GET", "/sesiones/self", caller, None),
                (200, "PUT", "/sesiones", json, created.body),
                (200, "DELETE", f"/sesiones/logoutAll{query}", caller, None),
                (401, "DELETE", f"/sesiones/logout{query}", caller, None),
            ):
                assert service.request(method, path, headers, body).status == status
            assert service.request("GET", "/openapi.json").json()["info"]["version"] == version
            assert b"</html>" in service.request("GET", "/docs").body


if __name__ == "__main__":
    main()
