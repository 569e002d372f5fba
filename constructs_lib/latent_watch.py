"""Alarms and a dashboard for a cache of latents, and for what it saves the nodes that use it."""

from collections.abc import Sequence
from dataclasses import dataclass

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_sns as sns
from constructs import Construct

from constructs_lib.alarms import Alarms, graph
from constructs_lib.latent_cache import LatentCache

_MINUTE, _FIVE_MINUTES = Duration.minutes(1), Duration.minutes(5)
_SERVER = "AWS/ElastiCache"


@dataclass(frozen=True, kw_only=True)
class CacheLimits:
    """When to raise an alarm.

    Args:
        memory_percent: Of a node's memory, counted as ElastiCache does when it evicts.
        cpu_percent: Of the one core that answers commands.
        evictions: Values that one shard threw out in a minute.
        lag_seconds: How far a replica is behind.
        hit_percent: Least share of lookups that find their latents.
    """

    memory_percent: float = 95
    cpu_percent: float = 85
    evictions: float = 1000
    lag_seconds: float = 10
    hit_percent: float = 10


class LatentWatch(Construct):
    """Tells `topic` when the cache is full, slow, behind or useless, and shows what it saves.

    Args:
        cache: What is watched.
        namespace: Where the nodes publish.
        fleet: Value of the dimension Fleet of their metrics.
        limits: When to raise an alarm.
        topic: Hears of every alarm, and of its end.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cache: LatentCache,
        namespace: str,
        fleet: str,
        limits: CacheLimits,
        topic: sns.ITopic,
    ) -> None:
        super().__init__(scope, construct_id)
        self._namespace, self._fleet = namespace, fleet
        self._alarms = Alarms(self, topic)
        for number, nodes in enumerate(cache.node_ids, start=1):
            self._watch_shard(f"Shard{number}", nodes, limits)
        hits, misses = self._sum("LatentHits"), self._sum("LatentMisses")
        rate = cloudwatch.MathExpression(
            # Without a hundred lookups there is nothing to tell.
            expression="IF(hits + misses >= 100, 100 * hits / (hits + misses), 100)",
            using_metrics={
                "hits": hits.with_(period=_FIVE_MINUTES),
                "misses": misses.with_(period=_FIVE_MINUTES),
            },
            period=_FIVE_MINUTES,
            label="hits, % of lookups",
        )
        errors = self._sum("LatentStoreErrors")
        self._alarms.below("HitRate", rate, limits.hit_percent, periods=12)
        self._alarms.above("StoreErrors", errors, 0, periods=5)
        self.dashboard = cloudwatch.Dashboard(
            self,
            "Dashboard",
            widgets=[
                [graph("Hit rate", rate), graph("Lookups", hits, misses)],
                [
                    graph("Time to first token, hit against miss, p50", *self._first("p50")),
                    graph("Time to first token, hit against miss, p99", *self._first("p99")),
                ],
                [
                    graph(
                        "Bytes saved: latents read in place of computed",
                        self._sum("LatentBytesFetched"),
                        self._sum("LatentBytesStored"),
                    ),
                    graph("Tokens not computed again", self._sum("LatentTokensReused")),
                ],
                [graph("Errors of the store", errors), graph("Memory, %", *self._memory(cache))],
            ],
        )

    def _watch_shard(self, name: str, nodes: Sequence[str], limits: CacheLimits) -> None:
        def worst(metric: str, statistic: str = "Maximum") -> cloudwatch.IMetric:
            return _worst([_node(metric, node, statistic) for node in nodes], metric)

        memory = worst("DatabaseMemoryUsageCountedForEvictPercentage")
        self._alarms.above(f"{name}Memory", memory, limits.memory_percent, periods=5)
        evictions = worst("Evictions", "Sum")
        self._alarms.above(f"{name}Evictions", evictions, limits.evictions, periods=5)
        self._alarms.above(
            f"{name}Cpu", worst("EngineCPUUtilization"), limits.cpu_percent, periods=5
        )
        if len(nodes) > 1:
            lag = worst("ReplicationLag")
            self._alarms.above(f"{name}Lag", lag, limits.lag_seconds, periods=5)

    def _memory(self, cache: LatentCache) -> list[cloudwatch.IMetric]:
        metric = "DatabaseMemoryUsagePercentage"
        return [
            _worst(
                [_node(metric, node, "Maximum") for node in nodes], f"shard {number}", f"s{number}n"
            )
            for number, nodes in enumerate(cache.node_ids, start=1)
        ]

    def _first(self, statistic: str) -> list[cloudwatch.IMetric]:
        names = ("TimeToFirstTokenHitMs", "TimeToFirstTokenMissMs")
        return [self._metric(name, statistic) for name in names]

    def _sum(self, name: str) -> cloudwatch.Metric:
        return self._metric(name, "Sum")

    def _metric(self, name: str, statistic: str) -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace=self._namespace,
            metric_name=name,
            dimensions_map={"Fleet": self._fleet},
            statistic=statistic,
            period=_MINUTE,
        )


def _node(name: str, node: str, statistic: str) -> cloudwatch.Metric:
    return cloudwatch.Metric(
        namespace=_SERVER,
        metric_name=name,
        dimensions_map={"CacheClusterId": node, "CacheNodeId": "0001"},
        statistic=statistic,
        period=_MINUTE,
    )


def _worst(metrics: list[cloudwatch.Metric], label: str, prefix: str = "m") -> cloudwatch.IMetric:
    """Return the highest of several nodes' metrics; an alarm may look at ten.

    In one graph each metric needs an id of its own, which begins with `prefix`.
    """
    if len(metrics) == 1:
        return metrics[0]
    used: dict[str, cloudwatch.IMetric] = {
        f"{prefix}{n}": metric for n, metric in enumerate(metrics)
    }
    return cloudwatch.MathExpression(
        expression=f"MAX([{', '.join(used)}])", using_metrics=used, period=_MINUTE, label=label
    )
