"""Alarms and a dashboard for what experts do: what is warm, what has to be loaded, who waits."""

from collections.abc import Sequence
from dataclasses import dataclass

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_sns as sns
from constructs import Construct

from constructs_lib.alarms import Alarms, graph
from constructs_lib.endpoint_alarms import EndpointAlarms

_MINUTE, _FIVE_MINUTES = Duration.minutes(1), Duration.minutes(5)


@dataclass(frozen=True, kw_only=True)
class ExpertLimits:
    """When to raise an alarm.

    Args:
        hit_percent: Visits of experts that found them in memory, over an hour.
        stall_percent: Share of a node's time that decoding waits for experts.
    """

    hit_percent: float
    stall_percent: float


class ExpertWatch(Construct):
    """Tells `topic` when a fleet's experts are cold, and shows all fleets side by side.

    Args:
        fleets: Values of the dimension Fleet: pools, canaries, the endpoint.
        endpoint: The endpoint's alarms, if there is one; their metrics are shown.
        metric_namespace: Where the servers publish.
        limits: When to raise an alarm.
        topic: Hears of every alarm, and of its end.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        fleets: Sequence[str],
        endpoint: EndpointAlarms | None,
        metric_namespace: str,
        limits: ExpertLimits,
        topic: sns.ITopic,
    ) -> None:
        super().__init__(scope, construct_id)
        self._namespace, self._alarms = metric_namespace, Alarms(self, topic)
        for fleet in fleets:
            self._watch(fleet, limits)
        rows: list[list[cloudwatch.IWidget]] = [
            [
                graph("Experts found in memory, % of visits", *map(self._hit_rate, fleets)),
                graph("Decoding waits for experts, % of time", *map(self._stall, fleets)),
            ],
            [
                graph("Bytes of experts loaded", *self._sums("ExpertBytesLoaded", fleets)),
                graph("Prefetched in time", *self._sums("ExpertPrefetchHits", fleets)),
            ],
            [
                graph("Busiest expert over the mean", *self._means("ExpertImbalance", fleets)),
                graph("Experts that could not be loaded", *self._sums("ExpertErrors", fleets)),
            ],
            [
                graph("Tokens a second", *self._means("TokensPerSecond", fleets)),
                graph("Time to first token, p99", *self._means("TimeToFirstToken", fleets, "p99")),
            ],
        ]
        if endpoint:
            rows.append(
                [
                    graph("Endpoint: answers with 5xx", endpoint.errors),
                    graph("Endpoint: model latency, microseconds", endpoint.latency),
                ]
            )
        self.dashboard = cloudwatch.Dashboard(self, "Dashboard", widgets=rows)

    def _watch(self, fleet: str, limits: ExpertLimits) -> None:
        rate, stall = self._hit_rate(fleet), self._stall(fleet)
        errors = self._metric("ExpertErrors", fleet, "Sum")
        self._alarms.below(f"HitRate-{fleet}", rate, limits.hit_percent, periods=12)
        self._alarms.above(f"Stall-{fleet}", stall, limits.stall_percent, periods=3)
        self._alarms.above(f"Errors-{fleet}", errors, 0, periods=3)

    def _hit_rate(self, fleet: str) -> cloudwatch.MathExpression:
        name = _identifier(fleet)
        hits, misses = f"h_{name}", f"m_{name}"
        return cloudwatch.MathExpression(
            # Without a hundred visits there is nothing to tell.
            expression=f"IF({hits} + {misses} >= 100, 100 * {hits} / ({hits} + {misses}), 100)",
            using_metrics={
                hits: self._metric("ExpertHits", fleet, "Sum").with_(period=_FIVE_MINUTES),
                misses: self._metric("ExpertMisses", fleet, "Sum").with_(period=_FIVE_MINUTES),
            },
            period=_FIVE_MINUTES,
            label=fleet,
        )

    def _stall(self, fleet: str) -> cloudwatch.MathExpression:
        name = f"s_{_identifier(fleet)}"
        return cloudwatch.MathExpression(
            # Milliseconds of waiting that a node reports, over those of the minute.
            expression=f"100 * {name} / 60000",
            using_metrics={name: self._metric("ExpertStallMs", fleet, "Average")},
            period=_MINUTE,
            label=fleet,
        )

    def _sums(self, name: str, fleets: Sequence[str]) -> list[cloudwatch.IMetric]:
        return [self._metric(name, fleet, "Sum") for fleet in fleets]

    def _means(
        self, name: str, fleets: Sequence[str], statistic: str = "Average"
    ) -> list[cloudwatch.IMetric]:
        return [self._metric(name, fleet, statistic) for fleet in fleets]

    def _metric(self, name: str, fleet: str, statistic: str) -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace=self._namespace,
            metric_name=name,
            dimensions_map={"Fleet": fleet},
            statistic=statistic,
            period=_MINUTE,
            label=fleet,
        )


def _identifier(fleet: str) -> str:
    """Return a name that an expression takes: letters, digits, underscores."""
    return fleet.replace("-", "_").lower()
