"""Shows what is counted about experts at /metrics."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model_code.moe.experts.metrics import COUNTS, ExpertMetrics


class ExpertCollector(Collector):
    """Reads the counts when somebody looks."""

    def __init__(self, metrics: ExpertMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield each count since the start, and the budget."""
        for name, (_, metric, text) in COUNTS.items():
            value = self._metrics.total(name)
            yield CounterMetricFamily(f"isomorph_expert_{metric}", text, value=value)
        yield GaugeMetricFamily(
            "isomorph_expert_budget_bytes", "Bytes of memory that experts may take",
            value=self._metrics.budget_bytes,
        )  # fmt: skip
