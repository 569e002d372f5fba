"""Alarms and a dashboard for what a fleet of decoding nodes does."""

from dataclasses import dataclass

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_sns as sns
from constructs import Construct

from constructs_lib.alarms import BREACHING, Alarms, graph
from constructs_lib.fleet_group import FleetGroup
from constructs_lib.front_door import Entrance
from constructs_lib.weights import Weights

_MINUTE = Duration.minutes(1)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When to raise an alarm.

    Args:
        latency_seconds: 99th percentile of the time to the first byte of an answer.
        error_percent: Share of requests answered with 5xx.
    """

    latency_seconds: float
    error_percent: float


class FleetWatch(Construct):
    """Tells `topic` when the fleet fails, slows down or cannot grow, and shows why.

    Args:
        door: Its load balancer.
        group: Its nodes.
        weights: Until there are any, having no healthy node is no alarm.
        metric_namespace: Where the nodes publish.
        fleet: Value of the dimension Fleet of their metrics.
        limits: When to raise an alarm.
        queue: Requests that may wait at one node.
        topic: Hears of every alarm, and of its end.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        door: Entrance,
        group: FleetGroup,
        weights: Weights,
        metric_namespace: str,
        fleet: str,
        limits: Limits,
        queue: int,
        topic: sns.ITopic,
    ) -> None:
        super().__init__(scope, construct_id)
        self._namespace, self._fleet = metric_namespace, fleet
        alarms = Alarms(self, topic)
        in_flight, waiting = self._metric("RequestsInFlight"), self._metric("QueueDepth")
        balancer, targets = door.balancer.metrics, door.targets.metrics
        healthy = targets.healthy_host_count(statistic="Minimum", period=_MINUTE)
        latency = targets.target_response_time(statistic="p99", period=_MINUTE)
        requests = door.request_count(_MINUTE)
        failed = targets.http_code_target(elb.HttpCodeTarget.TARGET_5XX_COUNT, period=_MINUTE)
        refused = balancer.http_code_elb(elb.HttpCodeElb.ELB_5XX_COUNT, period=_MINUTE)
        nodes = cloudwatch.Metric(
            namespace="AWS/AutoScaling",
            metric_name="GroupInServiceInstances",
            dimensions_map={"AutoScalingGroupName": group.name},
            statistic="Maximum",
            period=_MINUTE,
            label="nodes in service",
        )
        errors = cloudwatch.MathExpression(
            expression="100 * (FILL(failed, 0) + FILL(refused, 0)) / requests",
            using_metrics={"failed": failed, "refused": refused, "requests": requests},
            period=_MINUTE,
            label="5xx, % of requests",
        )
        cramped = cloudwatch.MathExpression(
            expression=f"IF(nodes >= {group.machines.max_capacity}, busy, 0)",
            using_metrics={"nodes": nodes, "busy": in_flight},
            period=_MINUTE,
            label="in flight per node, at the maximum of nodes",
        )
        alarms.below(
            "NoHealthyNode",
            healthy,
            1,
            periods=2,
            missing=BREACHING,
            condition=weights.present,
        )
        alarms.above("Errors", errors, limits.error_percent, periods=3)
        alarms.above("Latency", latency, limits.latency_seconds, periods=5)
        alarms.above("Queue", waiting, queue / 2, periods=3)
        target = group.machines.requests_in_flight_target
        alarms.above("CannotGrow", cramped, target, periods=10)
        self.dashboard = cloudwatch.Dashboard(
            self,
            "Dashboard",
            widgets=[
                [graph("Requests a minute", requests), graph("Errors", errors)],
                [graph("Time to first byte, p99", latency), graph("Nodes", healthy, nodes)],
                [graph("Requests in flight per node", in_flight), graph("Waiting", waiting)],
                [
                    graph("Tokens a second", self._metric("TokensPerSecond")),
                    graph("Time to first token", self._metric("TimeToFirstToken", "p99")),
                ],
                [graph("Memory headroom per node, MiB", self._metric("MemoryHeadroom", "Minimum"))],
            ],
        )

    def show(self, title: str, metric: str, statistic: str = "Average") -> None:
        """Put a metric that this innovation's servers publish besides on the dashboard."""
        self.dashboard.add_widgets(graph(title, self._metric(metric, statistic)))

    def _metric(self, name: str, statistic: str = "Average") -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace=self._namespace,
            metric_name=name,
            dimensions_map={"Fleet": self._fleet},
            statistic=statistic,
            period=_MINUTE,
        )
