"""Alarms and a dashboard for runs of a mixture of experts: how fast, how even, how safe."""

from dataclasses import dataclass

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_sns as sns
from constructs import Construct

from constructs_lib.alarms import Alarms, graph

_MINUTE = Duration.minutes(1)


@dataclass(frozen=True, kw_only=True)
class TrainingLimits:
    """When to raise an alarm. Without a run there is no metric, and that is no alarm.

    Args:
        tokens_per_second: Least speed of a run; 0: any.
        mfu_percent: Least share of the accelerators' arithmetic that the model uses; 0: any.
        expert_load: Most tokens of the fullest expert, as a multiple of the mean.
        gradient_norm: Highest norm, before clipping.
        checkpoint_seconds: Oldest that the last whole checkpoint may be.
    """

    tokens_per_second: float = 0
    mfu_percent: float = 0
    expert_load: float = 3
    gradient_norm: float = 100
    checkpoint_seconds: float = 3600


class TrainingWatch(Construct):
    """Tells `topic` when a run is slow, uneven, unstable or unsaved, and when nodes fail.

    Args:
        namespace: Where runs publish.
        cluster: Value of the dimension Cluster of their metrics.
        limits: When to raise an alarm.
        topic: Hears of every alarm, and of its end.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        namespace: str,
        cluster: str,
        limits: TrainingLimits,
        topic: sns.ITopic,
    ) -> None:
        super().__init__(scope, construct_id)
        self._namespace, self._cluster = namespace, cluster
        self.alarms = Alarms(self, topic)
        speed, share = self._metric("TokensPerSecond"), self._metric("ModelFlopsUtilization")
        load, norm = self._most("ExpertLoadMaxOverMean"), self._most("GradientNorm")
        dropped, broken = self._most("DroppedTokens"), self._most("NonFiniteSteps")
        age, step = self._most("CheckpointAge"), self._most("Step")
        if limits.tokens_per_second:
            self.alarms.below("Speed", speed, limits.tokens_per_second, periods=10)
        if limits.mfu_percent:
            self.alarms.below("Utilization", share, limits.mfu_percent, periods=10)
        self.alarms.above("ExpertLoad", load, limits.expert_load, periods=10)
        self.alarms.above("GradientNorm", norm, limits.gradient_norm, periods=3)
        self.alarms.above("NonFinite", broken, 0, periods=1)
        self.alarms.above("DroppedTokens", dropped, 0, periods=1)
        self.alarms.above("CheckpointAge", age, limits.checkpoint_seconds, periods=3)
        self.dashboard = cloudwatch.Dashboard(
            self,
            "Dashboard",
            widgets=[
                [graph("Loss, nats a token", self._metric("Loss")), graph("Step", step)],
                [graph("Tokens a second", speed), graph("Model FLOPs utilization, %", share)],
                [
                    graph("Fullest expert, as a multiple of the mean", load),
                    graph("Dropped tokens, steps without a finite loss", dropped, broken),
                ],
                [graph("Norm of the gradient", norm), graph("Age of the checkpoint, s", age)],
            ],
        )

    def show(self, title: str, *metrics: cloudwatch.IMetric) -> None:
        """Add a graph to the dashboard."""
        self.dashboard.add_widgets(graph(title, *metrics))

    def _most(self, name: str) -> cloudwatch.Metric:
        return self._metric(name, "Maximum")

    def _metric(self, name: str, statistic: str = "Average") -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace=self._namespace,
            metric_name=name,
            dimensions_map={"Cluster": self._cluster},
            statistic=statistic,
            period=_MINUTE,
        )
