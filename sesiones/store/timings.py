"""How long operations take: metrics, and a line in the log for an operation that is slow."""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence

from sesiones.metrics import Metrics
from sesiones.sesion import Sesion

logger = logging.getLogger("sesiones.store")

SLOW_SECONDS = 0.1
"""An operation that takes longer is logged."""
SLOW_LOG_SECONDS = 1.0
"""Between two such lines. Under overload every operation is slow, and the metrics say how many."""


class Timings:
    """The operations of a store, on all of its event loops."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._logged_at = 0.0

    def checks_answered(
        self, asked: Sequence[float], answers: Sequence[Sesion | Exception | None]
    ) -> None:
        """Count checks that were answered together: when each was asked, and its answer."""
        seconds = self._metrics.checked(asked, answers)
        first = answers[0]
        if seconds > SLOW_SECONDS and not isinstance(first, Exception):
            self._log_slow("check", seconds, first.ID_Usuario if first else None)

    @contextlib.contextmanager
    def operation(self, name: str, ID_Usuario: int | None = None) -> Iterator[None]:
        """Count an operation other than a check while it runs."""
        self._metrics.begun(name)
        begun = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - begun
            self._metrics.over(name, seconds)
            if seconds > SLOW_SECONDS:
                self._log_slow(name, seconds, ID_Usuario)

    def _log_slow(self, operation: str, seconds: float, ID_Usuario: int | None) -> None:
        if time.monotonic() - self._logged_at > SLOW_LOG_SECONDS:
            self._logged_at = time.monotonic()
            extra: dict[str, object] = {"operation": operation, "seconds": seconds}
            if ID_Usuario is not None:
                extra["ID_Usuario"] = ID_Usuario
            logger.warning("slow: %s took %.3f s", operation, seconds, extra=extra)
