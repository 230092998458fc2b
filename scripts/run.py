"""`make run`: the service on a Redis server of its own, until Ctrl-C.

The SESIONES_* variables apply; with SESIONES_REDIS_URL set, no Redis server is started.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
import shlex
import socket
import stat
import sys
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import IO

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from sesiones import signals
from sesiones.cli.exits import Exit
from sesiones.http.server import serve
from sesiones.http.sockets import ListenError, listen
from sesiones.settings import Settings, SettingsError
from tests.harness.redis_binary import find_binaries, find_binary
from tests.harness.redis_server import RedisServer, unix_url

VAR = Path(__file__).parents[1] / "var"
DATA = VAR / "redis"
LEFT_SECONDS = 10.0
"""What a Redis server that is left from a killed run may take to end."""


def main() -> int:
    """The exit code, as of `sesiones serve`."""
    signals.begin()
    # Until serve() takes the signals over, what ends this process also ends Redis.
    signals.on_stop(lambda *_: sys.exit(0))
    try:
        settings = Settings.read(os.environ, {})
        with contextlib.ExitStack() as stack:
            # First the port: when it is taken, nothing else has been started.
            listeners, name = stack.enter_context(listen(settings))
            if _wants_redis(os.environ.keys(), settings):
                lock = stack.enter_context(_lock())
                server = stack.enter_context(_redis(lock))
                settings = dataclasses.replace(settings, redis_url=server.url)
                print(f"Env:   export SESIONES_REDIS_URL={shlex.quote(server.url)}")
            if settings.uds is None:
                print(f"Docs:  {name}/docs")
            print(f"Try:   {_example(settings, name)}", flush=True)
            serve(settings, listeners)
    except SettingsError as error:
        print(f"make run: {error}", file=sys.stderr)
        return Exit.USAGE
    except (ListenError, RuntimeError, OSError) as error:
        print(f"make run: {error}", file=sys.stderr)
        return Exit.NO
    except KeyboardInterrupt:
        pass
    return Exit.OK


def _wants_redis(variables: Set[str], settings: Settings) -> bool:
    """Whether a Redis server is to be started: none is named, or the one of an earlier run is, in
    a shell that has its `export` line."""
    named = {"SESIONES_REDIS_URL", "SESIONES_REDIS_URL_FILE"} & variables
    return not named or settings.redis_url in {unix_url(path) for path in _socket_paths()}


@contextlib.contextmanager
def _lock() -> Iterator[int]:
    """Two Redis servers on one append-only file would ruin it. Ours inherits the lock's file, so
    that it is held until that server has ended, also when this process was killed.

    The other lock ends with this process. Where it is free, a Redis server that holds the first one
    is left from a run that was killed, and is told to end. Raises OSError.
    """
    VAR.mkdir(exist_ok=True)
    with (VAR / "run.lock").open("w") as run, (VAR / "lock").open("w") as inherited:
        if not _is_locked(run):
            raise OSError("another `make run` is using var/redis")
        if not _is_locked(inherited):
            for path in _socket_paths():
                _end_redis(path)
            deadline = time.monotonic() + LEFT_SECONDS
            while not _is_locked(inherited):
                if time.monotonic() > deadline:
                    raise OSError("a Redis server of an earlier `make run` does not end")
                time.sleep(0.05)
        yield inherited.fileno()


def _end_redis(path: Path) -> None:
    """Tell the server at the socket to end, if there is one."""
    retry = Retry(NoBackoff(), 0)
    with (
        contextlib.suppress(RedisError),
        Redis(unix_socket_path=str(path), socket_timeout=1, retry=retry) as client,
    ):
        client.shutdown()


def _is_locked(file: IO[str]) -> bool:
    """Whether this process has got the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _redis(lock: int) -> Iterator[RedisServer]:
    """The first server of this machine that can read the data.

    A server that cannot ends without having changed it. So Valkey reads what Redis 7.0 cannot,
    where both are there. Raises OSError.
    """
    binaries, reasons = find_binaries()
    if not binaries:
        find_binary()  # raises what is missing
    path = _socket_path()
    for binary in binaries:
        server = RedisServer(DATA, socket_path=path, binary=binary.path, keep_open=lock)
        try:
            server.__enter__()
        except RuntimeError as error:
            reasons.append(f"{binary}: {error}")
            continue
        with contextlib.ExitStack() as stack:
            if path.parent != VAR:
                stack.callback(path.parent.rmdir)
            stack.enter_context(contextlib.closing(server))
            because = "; ".join([f"data in var/redis, {binary}", *reasons])
            print(f"Redis: redis-cli -s {shlex.quote(str(path))}  ({because})")
            yield server
        return
    raise OSError(
        f"no Redis server here can read var/redis{_writer()}. {'; '.join(reasons)}. "
        "Nothing there was changed. Install the kind of server that wrote it, name one with "
        "REDIS_SERVER=/path/to/redis-server, or begin without sessions: mv var/redis var/redis.old"
    )


def _writer() -> str:
    """Which server wrote the data last, as its base file says."""
    for path in sorted(DATA.glob("appendonlydir/*.base.rdb")):
        with path.open("rb") as file:
            match = re.search(rb"(redis|valkey)-ver.([0-9.]+)", file.read(256), re.DOTALL)
        if match:
            return f", which {match[1].decode().title()} {match[2].decode()} wrote"
    return ""


def _socket_paths() -> tuple[Path, Path]:
    """Where Redis's socket may lie, the best first: the same in each run, so that an `export` line
    stays true."""
    name = hashlib.sha256(os.fsencode(VAR)).hexdigest()[:16]
    return (
        VAR / "redis.sock",
        Path(f"/tmp/sesiones-{os.getuid()}-{name}/redis.sock"),  # noqa: S108
    )


def _socket_path() -> Path:
    """The first of them that can be bound: a path may have 107 bytes, and not every file system has
    sockets. The caller holds the lock, so that a socket that is there is of no server.
    """
    path, spare = _socket_paths()
    try:
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(path))
        path.unlink()
        return path
    except OSError:
        pass
    folder = spare.parent
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    # Other users of the machine may write beside it.
    private = stat.S_ISDIR(status.st_mode) and status.st_mode & 0o077 == 0
    if not private or status.st_uid != os.getuid():
        raise OSError(f"{folder} is not a folder that is this user's alone: remove it")
    return spare


def _example(settings: Settings, name: str) -> str:
    target = name
    if settings.uds is not None:
        target = f"--unix-socket {shlex.quote(settings.uds)} http://localhost"
    key = ' -H "Authorization: Bearer $KEY"' if settings.service_key else ""
    return f"curl -i {target}/sesiones{key} -d ID_Usuario=7 -d Dispositivo=laptop"


if __name__ == "__main__":
    sys.exit(main())
