"""A Redis or Valkey server of our own: for `make run`, the tests and the load scripts."""

import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.retry import Retry

from tests.harness.ports import free_port
from tests.harness.redis_binary import find_binary

CONFIGURATION = Path(__file__).parents[2] / "redis.conf"


class RedisServer:
    """A server on redis.conf, on a unix socket, and on a port if ``port`` is among the options,
    until it is closed. ``url`` names the port where there is one.

    ``data``: where its append-only file lives; by default in a private directory.
    ``socket_path``: of its unix socket; by default in the private directory.
    ``binary``: the path of the server's program; by default find_binary()'s.
    ``keep_open``: a file descriptor that it inherits.
    ``options``: lines of configuration over redis.conf's, as name and value.
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        socket_path: Path | None = None,
        binary: str | None = None,
        keep_open: int | None = None,
        **options: str,
    ) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="sesiones-"))
        self.socket = socket_path or self._directory / "redis.sock"
        self._binary = binary
        self._data = data or self._directory
        self._inherited = () if keep_open is None else (keep_open,)
        self._options = options
        self.port = int(options.get("port", "0"))
        self.tls_port = int(options.get("tls_port", "0"))
        self.url = f"redis://127.0.0.1:{self.port}" if self.port else unix_url(self.socket)
        # A copy: Sentinel, and CONFIG REWRITE, have a server write into its file.
        self._configuration = shutil.copy(CONFIGURATION, self._directory)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers. Raises RuntimeError with the end of its log."""
        self._data.mkdir(parents=True, exist_ok=True)
        log = self._directory / "redis.log"
        log.unlink(missing_ok=True)  # errors of an earlier run must not be reported as this one's
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self._data),
            "logfile": str(log),
            "daemonize": "no",
        } | {name.replace("_", "-"): value for name, value in self._options.items()}
        self._process = subprocess.Popen(
            [
                self._binary or find_binary(),
                str(self._configuration),
                *(word for name, value in options.items() for word in (f"--{name}", value)),
            ],
            # Its own process group: a Ctrl-C in the terminal is its owner's to pass on.
            start_new_session=True,
            pass_fds=self._inherited,
        )
        while not self._answers():
            if self.process.poll() is not None:
                raise RuntimeError(f"the Redis server did not start: {_reason(log)}")
            time.sleep(0.02)

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "it has not been started"
        return self._process

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def _answers(self) -> bool:
        try:
            with Redis(
                unix_socket_path=str(self.socket), socket_timeout=1, retry=Retry(NoBackoff(), 0)
            ) as client:
                return bool(client.ping())
        except AuthenticationError:  # an answer, where the default user is off
            return True
        except RedisError:
            return False

    def client(self, **options: Any) -> Redis:
        """A client on its unix socket, to be closed by the caller. It connects again at once when
        the server was restarted; redis-py alone would wait for seconds before each of its tries."""
        retry = Retry(NoBackoff(), 1)
        return Redis(unix_socket_path=str(self.socket), **{"retry": retry} | options)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the process; SIGTERM saves first. The data stays."""
        if self.is_running:
            self.process.send_signal(signal.SIGCONT)
            deadline = time.monotonic() + 10
            while self.process.poll() is None:
                # Again and again: a replica that has just been synchronized ignores SIGTERM until
                # it has written its first append-only file.
                late = time.monotonic() > deadline  # it cannot save, and so does not end
                self.process.send_signal(signal.SIGKILL if late else number)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=0.2)
            self._process = None

    def wait_until_written(self) -> None:
        """Return when the append-only file has every write, so that a killed server loses none.
        Redis keeps writes back for up to two seconds while an earlier fsync runs."""
        with self.client() as redis:
            while redis.info("persistence")["aof_buffer_length"]:
                time.sleep(0.02)

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

    def __exit__(self, *_: object) -> None:
        self.close()


def _reason(log: Path) -> str:
    """Why a server ended. Without its advice to "fix" a file: that cuts off what it cannot read."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    texts = [re.sub(r"^\d+:\w [\w :.]+ [.*#-] ", "", line) for line in lines]
    texts = [re.sub(r":? *make a backup.*", "", text, flags=re.I) for text in texts]
    telling = [text for text in texts if text and not text.startswith("WARNING")]
    return telling[-1] if telling else "it left no log"


def unix_url(path: Path) -> str:
    return f"unix://{quote(str(path))}"


class RedisCluster:
    """A Cluster of servers on loopback, by port, until it is closed: masters that share the slots
    evenly, and as many replicas, each of another master. With ``tls_cert_file`` among the options,
    each has a port for TLS too."""

    def __init__(self, masters: int = 3, replicas: int = 0, **options: str) -> None:
        self._masters, self._replicas = masters, replicas
        self._options = options
        self._stack = ExitStack()
        self.servers: dict[int, RedisServer] = {}
        self.clients: dict[int, Redis] = {}
        self.bus_ports: dict[int, int] = {}
        """The ports on which the nodes talk to each other, those of removed nodes too."""

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.servers)

    @property
    def master_ports(self) -> list[int]:
        return list(self.servers)[: self._masters]

    def run(self, port: int, *arguments: str | int) -> Any:
        """A command to one node."""
        return self.clients[port].execute_command(*arguments)  # type: ignore[no-untyped-call]

    def add(self) -> int:
        """A node without slots, and its port."""
        port, bus = free_port(), free_port()
        options: dict[str, Any] = {
            "port": str(port),
            "cluster_enabled": "yes",
            "cluster_port": str(bus),
            "cluster_node_timeout": "1000",
            "cluster_allow_replica_migration": "no",  # a master without slots stays one
            "repl_diskless_sync_delay": "0",
        }
        if "tls_cert_file" in self._options:
            options["tls_port"] = str(free_port())
        self.servers[port] = self._stack.enter_context(RedisServer(**options | self._options))
        client = Redis(port=port, decode_responses=True)
        self.clients[port] = self._stack.enter_context(client)
        self.run(port, "CLUSTER", "SET-CONFIG-EPOCH", len(self.servers))
        self.bus_ports[port] = bus
        self.run(port, "CLUSTER", "MEET", "127.0.0.1", *next(iter(self.bus_ports.items())))
        return port

    def remove(self, port: int) -> None:
        """Forget the node everywhere, and end it."""
        name = self.id(port)
        self.servers.pop(port).close()
        self.clients.pop(port).close()
        for other in self.servers:
            self.run(other, "CLUSTER", "FORGET", name)

    def wait(self, condition: Callable[[int], bool], seconds: float = 20) -> None:
        """Until it holds of every node's port."""
        wait_until(lambda: all(condition(port) for port in self.servers), "the Cluster", seconds)

    def empty(self) -> None:
        """Delete every key, once all nodes take writes."""
        self.wait(lambda port: self._knows(port, "cluster_state:ok\r"))
        for port in self.master_ports:
            self.run(port, "FLUSHALL")

    def begin_move(self, slot: int, source: int, target: int) -> None:
        self.run(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id(source))
        self.run(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id(target))

    def move_keys(self, source: int, target: int, *keys: str) -> None:
        self.run(source, "MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *keys)

    def end_move(self, slot: int, source: int, target: int) -> None:
        for port in target, source:
            self.run(port, "CLUSTER", "SETSLOT", slot, "NODE", self.id(target))

    def move_slot(self, slot: int, source: int, target: int) -> int:
        """Under load. How many keys have moved with it."""
        self.begin_move(slot, source, target)
        moved = 0
        while found := self.run(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.move_keys(source, target, *found)
            moved += len(found)
        self.end_move(slot, source, target)
        return moved

    def owner(self, slot: int) -> int:
        """The port of the slot's master, as the first node knows it."""
        for first, last, master, *_ in self.run(next(iter(self.servers)), "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return int(master[1])
        raise LookupError(slot)

    def in_sync(self, port: int) -> bool:
        """Whether the node, if it is a replica, has all that its master has written."""
        state = self.clients[port].info("replication")
        if state["role"] == "master":
            return True
        master = self.clients[state["master_port"]].info("replication")
        return bool(
            state["master_link_status"] == "up"
            and state["slave_repl_offset"] >= master["master_repl_offset"]
        )

    def id(self, port: int) -> str:
        return str(self.run(port, "CLUSTER", "MYID"))

    def __enter__(self) -> "RedisCluster":
        with self._stack:
            for _ in range(self._masters + self._replicas):
                self.add()
            for number, port in enumerate(self.master_ports):
                first, last = (16384 * n // self._masters for n in (number, number + 1))
                self.run(port, "CLUSTER", "ADDSLOTSRANGE", first, last - 1)
            size = f"cluster_known_nodes:{len(self.servers)}\r\ncluster_size:{self._masters}\r"
            self.wait(lambda port: self._knows(port, "cluster_slots_ok:16384\r", size))
            for number, port in enumerate(list(self.servers)[self._masters :]):
                self.run(port, "CLUSTER", "REPLICATE", self.id(self.master_ports[number]))
            self.wait(lambda port: self._knows(port, "cluster_state:ok\r"))
            self.wait(lambda port: self.clients[port].info().get("master_link_status") != "down")
            self._stack = self._stack.pop_all()
        return self

    def _knows(self, port: int, *lines: str) -> bool:
        info: str = self.run(port, "CLUSTER", "INFO")
        return all(line in info for line in lines)

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class RedisSentinels:
    """A master with its replicas on loopback, by port, and the Sentinels that watch them (a
    majority decides), until it is closed. All know each other from the start."""

    def __init__(
        self,
        replicas: int = 2,
        sentinels: int = 3,
        down_after_milliseconds: int = 300,
        failover_timeout_milliseconds: int = 1000,
    ) -> None:
        self._replicas, self._sentinels = replicas, sentinels
        self._down_after_milliseconds = down_after_milliseconds
        self._failover_timeout_milliseconds = failover_timeout_milliseconds
        self._stack = ExitStack()
        self.servers: dict[int, RedisServer] = {}
        self.clients: dict[int, Redis] = {}
        self.sentinels: dict[int, Redis] = {}

    @property
    def url(self) -> str:
        addresses = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"redis+sentinel://{addresses}/mymaster"

    def named(self) -> set[int]:
        """The ports that the Sentinels name as the master's."""
        command = "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"
        replies = (client.execute_command(*command) for client in self.sentinels.values())  # type: ignore[no-untyped-call]
        return {int(port) for _, port in replies}

    def replicated(self, port: int) -> bool:
        """Whether every other server is a replica of this one, and has all that was written."""
        states = {each: client.info("replication") for each, client in self.clients.items()}
        master = states.pop(port)
        return all(
            state["role"] == "slave"
            and state["master_link_status"] == "up"
            and state["master_replid"] == master["master_replid"]
            and state["slave_repl_offset"] >= master["master_repl_offset"]
            for state in states.values()
        )

    def __enter__(self) -> "RedisSentinels":
        with self._stack:
            for _ in range(1 + self._replicas):
                port = free_port()
                # Without the delay, a master would wait 5 s for more replicas.
                server = RedisServer(port=str(port), repl_diskless_sync_delay="0")
                self.servers[port] = self._stack.enter_context(server)
                client = Redis(port=port, decode_responses=True)
                self.clients[port] = self._stack.enter_context(client)
            master, *replicas = self.servers
            for port in replicas:
                self.clients[port].replicaof("127.0.0.1", str(master))
            wait_until(lambda: self.replicated(master), "the replicas")
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            ports = [free_port() for _ in range(self._sentinels)]
            for port in ports:
                self._start_sentinel(folder, port, ports)
                client = Redis(port=port, decode_responses=True)
                self.sentinels[port] = self._stack.enter_context(client)
            self._stack = self._stack.pop_all()
        return self

    def _start_sentinel(self, folder: Path, port: int, ports: list[int]) -> None:
        master, *replicas = self.servers
        own, *others = sorted(ports, key=lambda other: other != port)
        configuration = folder / f"{port}.conf"
        lines = [
            f"bind 127.0.0.1\nport {port}\ndir {folder}\nlogfile {folder}/{port}.log",
            f"sentinel myid {own:040}",
            f"sentinel monitor mymaster 127.0.0.1 {master} {len(ports) // 2 + 1}",
            f"sentinel down-after-milliseconds mymaster {self._down_after_milliseconds}",
            f"sentinel failover-timeout mymaster {self._failover_timeout_milliseconds}",
            *(f"sentinel known-replica mymaster 127.0.0.1 {each}" for each in replicas),
            *(f"sentinel known-sentinel mymaster 127.0.0.1 {each} {each:040}" for each in others),
        ]
        configuration.write_text("\n".join(lines) + "\n")
        process = subprocess.Popen(
            [find_binary(), str(configuration), "--sentinel"], start_new_session=True
        )
        self._stack.callback(process.wait, timeout=10)
        self._stack.callback(process.terminate)
        wait_until(lambda: _accepts(port), "a Sentinel")

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Wait until the condition holds. ``what``: named in the RuntimeError when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"gave up after {seconds:g} s of waiting for {what}")
        time.sleep(0.02)
