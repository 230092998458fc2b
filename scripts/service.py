"""The service as a process of its own, for the load tests."""

import contextlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from sesiones.settings import Settings


@contextlib.contextmanager
def serve(environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """Its URL, while it runs in that environment, which names its port. Raises RuntimeError."""
    settings = Settings.read(environment, {})
    url = f"http://{settings.host}:{settings.port}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "sesiones", "serve"],
            env=environment,
            stderr=file,
            start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on
        )
    try:
        while not _serves(url):
            if process.poll() is not None:
                last = log.read_text().splitlines()[-1:]
                raise RuntimeError(f"the service did not start: {' '.join(last)}")
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def _serves(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/sesiones/self", timeout=1)  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
