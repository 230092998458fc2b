"""Metrics in the form of prometheus-client, which this module needs."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from sesiones.metrics import FAMILIES, Family, Metrics, cell

_KINDS: Any = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class MetricsCollector(Collector):
    """Shows what a store has counted, in the registry that an application gives it to:
    ``REGISTRY.register(MetricsCollector(store.metrics))``."""

    families: Sequence[Family] = FAMILIES

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Every metric, for prometheus-client."""
        cells = self._metrics.sums()
        for family in self.families:
            names = [family.label] if family.label else []
            shown = _KINDS[family.kind](family.name, family.help, labels=names)
            for value in family.values:
                first = cell(family, value)
                labels = [value] if family.label else []
                if family.bounds:
                    counts = itertools.accumulate(cells[first : first + len(family.bounds) + 1])
                    bounds = map(floatToGoString, (*family.bounds, float("inf")))
                    buckets = list(zip(bounds, counts, strict=True))
                    shown.add_metric(labels, buckets, cells[first + len(family.bounds) + 1])
                else:
                    shown.add_metric(labels, cells[first])
            yield shown
