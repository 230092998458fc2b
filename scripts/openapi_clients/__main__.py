"""`make openapi`, its second part: openapi-python-client and openapi-typescript each make a client
of the document of a running service. A program checks the types of each, and uses it there.

The TypeScript client needs Node.js with npm, and is skipped with a message where there is none.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.redis_server import RedisServer
from tests.harness.service import Service
from tests.harness.stores import KEY

PROGRAMS = Path(__file__).parent


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, served() as url:
        python_client(Path(directory) / "python", url)
        if shutil.which("npm") and shutil.which("node"):
            typescript_client(Path(directory) / "typescript", url)
        else:
            print("openapi-typescript: skipped, because npm or node is not installed")


@contextmanager
def served() -> Iterator[str]:
    """The URL of a service."""
    with (
        RedisServer() as redis,
        Service(
            SESIONES_REDIS_URL=redis.url, SESIONES_SERVICE_KEY=KEY, SESIONES_REDIS_TIMEOUT="5"
        ) as service,
    ):
        yield f"http://127.0.0.1:{service.port}"


def python_client(folder: Path, url: str) -> None:
    folder.mkdir()
    settings = folder / "settings.yaml"
    settings.write_text("post_hooks: []\n")  # formatting is of no use here
    package = folder / "sesiones_client"
    generator = sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning"
    flags = "--meta", "none", "--config", settings, "--output-path", package
    run(folder, *generator, *flags, "--url", f"{url}/openapi.json")
    program = shutil.copy(PROGRAMS / "use.py", folder)
    run(folder, sys.executable, "-m", "mypy", "--strict", package, program)
    run(folder, sys.executable, program, url, KEY)
    print("openapi-python-client: the client works")


def typescript_client(folder: Path, url: str) -> None:
    shutil.copytree(PROGRAMS, folder)
    run(folder, "npm", "ci", "--silent")
    run(folder, "npx", "openapi-typescript", f"{url}/openapi.json", "--output", "sesiones.d.ts")
    run(folder, "npx", "tsc")
    run(folder, "node", "use.js", url, KEY)
    print("openapi-typescript: the client works")


def run(folder: Path, *command: str | Path) -> None:
    ended = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if ended.returncode:
        sys.exit(f"{ended.stdout}{' '.join(map(str, command))}: exit code {ended.returncode}")


if __name__ == "__main__":
    main()
