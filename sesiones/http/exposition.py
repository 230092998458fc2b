"""GET /metrics: the cells of metrics.py in Prometheus's text."""

import itertools
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from starlette.requests import Request
from starlette.responses import Response

import sesiones
from sesiones.metrics import FAMILIES, Metrics, cell

_KINDS: Any = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class Exposition(Collector):
    """What the processes of this service have counted."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Every metric, for prometheus-client."""
        cells = self._metrics.sums()
        for family in FAMILIES:
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
        build = GaugeMetricFamily(
            "sesiones_build_info", "The version that runs.", labels=["version"]
        )
        build.add_metric([sesiones.__version__], 1)
        yield build

    async def show(self, request: Request) -> Response:
        """GET, HEAD /metrics."""
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        headers = {"Cache-Control": "no-store", "Content-Type": content_type}
        return Response(encode(self._registry), headers=headers)
