"""What the store raises."""


class StoreUnavailable(Exception):
    """Redis cannot answer, or refuses: the operation may or may not have happened."""


class WritesRefused(StoreUnavailable):
    """Redis answers, but takes no writes."""


class WritesSilent(StoreUnavailable):
    """A call that may write has had no answer in half of its time: the server is gone, or holds
    back writes (CLIENT PAUSE, a failover that is coordinated)."""
