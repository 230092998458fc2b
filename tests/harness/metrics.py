"""The metrics of a store in this process."""

import re

from sesiones.http.operations import Exposition
from sesiones.metrics import Metrics


def counted(metrics: Metrics) -> dict[str, float]:
    """What was counted, by name and labels: without Redis's own share, and without zeros."""
    return {
        name: value
        for name, value in (
            (f"{s.name}{list(s.labels.values())}", s.value)
            for family in Exposition(metrics).collect()
            for s in family.samples
        )
        if value and re.search(r"checks_total|slides|created|updated|ended|errors|in_flight", name)
    }
