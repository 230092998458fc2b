"""`make run`: the service on a Redis server of its own, until Ctrl-C.

The SESIONES_* variables apply; with SESIONES_REDIS_URL set, no Redis server is started.
"""

import contextlib
import dataclasses
import fcntl
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from scripts.redis_server import RedisServer
from sesiones import start
from sesiones.server import ListenError, listen, serve
from sesiones.settings import Settings, SettingsError

VAR = Path(__file__).parents[1] / "var"


def main() -> int:
    """The exit code: 0, 1 when a server cannot start, 2 for bad settings."""
    # Until serve() takes the signals over, what ends this process also ends Redis.
    start.on_stop(lambda *_: sys.exit(0))
    try:
        settings = Settings.read(os.environ, {})
        with contextlib.ExitStack() as stack:
            # First the port: when it is taken, nothing else has been started.
            listeners, name = stack.enter_context(listen(settings))
            if "SESIONES_REDIS_URL" not in os.environ:
                lock = stack.enter_context(_lock(VAR / "lock"))
                server = stack.enter_context(RedisServer(VAR / "redis", keep_open=lock))
                settings = dataclasses.replace(settings, redis_url=server.url)
                print(f"Redis: redis-cli -s {server.socket}  (data in var/redis)")
            print(f"Try:   {_example(settings, name)}", flush=True)
            serve(settings, listeners)
    except SettingsError as error:
        print(f"make run: {error}", file=sys.stderr)
        return 2
    except (ListenError, RuntimeError, OSError) as error:
        print(f"make run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[int]:
    """Two Redis servers on one append-only file would ruin it. The first one inherits the lock's
    file, so that it is held until that server has ended, whatever became of us."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError("a Redis server of another `make run` is using var/redis") from None
        yield file.fileno()


def _example(settings: Settings, name: str) -> str:
    target = name
    if settings.uds is not None:
        target = f"--unix-socket {shlex.quote(settings.uds)} http://localhost"
    key = ' -H "Authorization: Bearer $KEY"' if settings.service_key else ""
    return f"curl -i {target}/sesiones{key} -d ID_Usuario=7 -d Dispositivo=laptop"


if __name__ == "__main__":
    sys.exit(main())
