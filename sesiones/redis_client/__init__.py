"""Commands on Redis, by URL: one server, the master that Sentinel names, or a Cluster. This layer
knows no session."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from redis.asyncio import ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sesiones import redis_url
from sesiones.redis_client.cluster import Cluster
from sesiones.redis_client.connection import Argument, OnReply, PipelinedConnection, Sent
from sesiones.redis_client.single import Execute, Listener, SentinelMaster, Server
from sesiones.redis_client.subscription import Lease, OnLease, OnMessage


class Commands(Protocol):
    """What the store needs of Redis. Its connections belong to one event loop."""

    batch_max: int
    """Checks that one call may carry."""
    in_flight_max: int
    """Calls with checks that may be out at once, for each node."""

    @property
    def node_of(self) -> Callable[[str], Hashable] | None:
        """The node that has the keys of a bucket, as far as it is known. The property is None where
        one server has all keys."""

    async def execute(
        self,
        *arguments: Argument,
        keys: Sequence[str] = (),
        reads: bool = False,
        replicas: int = 0,
        safe_to_repeat: bool = False,
        on_reply: OnReply | None = None,
        sent: Sent | None = None,
    ) -> Any:
        """One command's reply. Raises redis.exceptions.RedisError or OSError; TypeError or
        UnicodeEncodeError for an argument that cannot be sent.

        ``keys``: the keys that the command is about, whether it declares them or not; it goes to
        the first one's node. ``reads``: it writes nothing. On a Cluster, it raises SlotMovedError
        when the keys are not, or not all, on that node: nothing was written then. ``replicas``:
        raises UnconfirmedError unless so many replicas have what it wrote; later commands wait for
        that. ``safe_to_repeat``: the command may be carried out twice. So when the server has sent
        nothing for half of the time, it raises SilentError, and the caller may send it again.

        ``on_reply`` is called with the reply, and the command's result is what it returns or
        raises. It is called as soon as the reply has been read, before any later reply, and even if
        the caller was cancelled meanwhile or the replicas do not confirm.

        ``sent``: the same command, if it was sent on connection(): its reply is waited for instead
        of sending the command first.
        """

    def connection(self, keys: Sequence[str]) -> PipelinedConnection | None:
        """The connection that execute() would send a command about these keys on at once. None
        where it would have to find the node or to open a connection first."""

    async def execute_on_master(
        self, *arguments: Argument, keys: Sequence[str], safe_to_repeat: bool = False
    ) -> Any:
        """The same for a command that a replica, or a master that has been replaced, would answer
        too: it raises unless the answer is known to be the master's."""

    async def masters(self) -> dict[str, Execute]:
        """execute() on each server that takes writes, by its name: one, or those of a Cluster."""

    async def sentinels(self) -> dict[str, Execute]:
        """execute() on each Sentinel of the URL, by its address; none where the URL names none."""

    def on_owner_change(self, listener: Listener) -> None:
        """Call the listener whenever the keys of some buckets may have another owner: a connection
        was lost, so the server behind the next one may lack recent writes; or slots of a Cluster
        have another master."""

    def last_answered_sent_at(self, bucket: str) -> float:
        """When the newest command that the owner of the bucket's keys has answered was sent, in
        time.monotonic()'s time: that server was the owner then. Until the first answer, when the
        connection was opened; without an open connection, now."""

    def subscribe(self, channel: str, on_message: OnMessage, on_lease: OnLease) -> None:
        """Listen to a channel on every master, beside the connections of this. ``on_message`` is
        called with each message; see subscription.py. To be called before the first command."""

    def lease(self, bucket: str) -> Lease:
        """The lease on what execute() reads of the bucket's keys now. While it lasts, every message
        that their owner has published since has been delivered, but for those of the last
        LEASE_SECONDS. Once it is revoked, this returns another object."""

    def reset(self) -> None:
        """Drop the connections. The next command opens a new one, and asks Sentinel for the master
        where the URL names Sentinels."""

    async def aclose(self) -> None:
        """Close the connections for good. Commands in flight fail."""


def connect(url: str, timeout_seconds: float, ca_file: str | None = None) -> Commands:
    """Commands on the server that the URL names; no I/O until the first one.

    URLs are redis-py's, ``redis+sentinel://host:port,.../master/db`` and
    ``redis+cluster://host:port,...``, and with ``rediss`` the same over TLS. Raises ValueError for
    any other. ``ca_file``: certificates of authorities that TLS trusts beside the system's, in PEM.
    It is read for each connection, so a renewed file counts from the next one on.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        # The store retries, because it knows which commands may be repeated, and until when.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,
    }
    parsed = redis_url.parse(url)
    if parsed.uses_tls and ca_file is not None:
        options["ssl_ca_certs"] = ca_file
    if parsed.uses_tls and (parsed.is_cluster or parsed.is_sentinel):
        options["connection_class"] = SSLConnection
    if parsed.is_cluster:
        return Cluster(parsed.addresses, options | dict(parsed.credentials), timeout_seconds)
    if parsed.is_sentinel:
        return SentinelMaster(
            parsed.addresses,
            parsed.master,
            options | {"db": parsed.database} | dict(parsed.credentials),
            options | dict(parsed.sentinel_credentials),
            timeout_seconds,
        )
    return Server(ConnectionPool.from_url(url, **options), timeout_seconds)


__all__ = ["Argument", "Commands", "Execute", "Lease", "Listener", "OnReply", "connect"]
