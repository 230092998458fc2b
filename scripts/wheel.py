"""`make wheel`: build the wheel, install it in an empty environment with the locked versions, and
see it serve from there."""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

import sesiones
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service

ROOT = Path(__file__).parents[1]
WHEEL = ROOT / "dist" / f"sesiones-{sesiones.__version__}-py3-none-any.whl"


def main() -> None:
    WHEEL.unlink(missing_ok=True)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(WHEEL.parent), str(ROOT))
    with zipfile.ZipFile(WHEEL) as archive:
        packed = set(archive.namelist())
    files = (path for path in (ROOT / "sesiones").rglob("*") if path.is_file())
    tracked = {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}
    assert tracked <= packed, tracked - packed
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        bin_directory = Path(directory) / "bin"
        pip = (str(bin_directory / "pip"), "install", "--quiet", "--disable-pip-version-check")
        run(*pip, "--require-hashes", "--requirement", str(ROOT / "requirements.lock"))
        run(*pip, "--no-deps", str(WHEEL))
        run(str(bin_directory / "pip"), "check")
        serve(str(bin_directory / "sesiones"))
    print(f"{WHEEL.relative_to(ROOT)}: installs and serves")


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)


def serve(command: str) -> None:
    """A session's life, and what the package carries beside its code."""
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
