"""What the store's parts raise for each other: kinds of StoreUnavailable."""

from sesiones.sesion import StoreUnavailable


class WritesRefused(StoreUnavailable):
    """Redis answers, but takes no writes."""


class WritesSilent(StoreUnavailable):
    """A call that may write has had no answer in half of its time: the server is gone, or holds
    back writes (CLIENT PAUSE, a failover that is coordinated)."""
