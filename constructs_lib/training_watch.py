"""Alarms and a dashboard for runs of a mixture of experts: how fast, how even, how safe."""

from dataclasses import dataclass

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_sns as sns
from constructs import Construct

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
        self._namespace, self._cluster, self._topic = namespace, cluster, topic
        speed, share = self._metric("TokensPerSecond"), self._metric("ModelFlopsUtilization")
        load, norm = self._most("ExpertLoadMaxOverMean"), self._most("GradientNorm")
        dropped, broken = self._most("DroppedTokens"), self._most("NonFiniteSteps")
        age, step = self._most("CheckpointAge"), self._most("Step")
        if limits.tokens_per_second:
            self.alarm("Speed", speed, below=limits.tokens_per_second, minutes=10)
        if limits.mfu_percent:
            self.alarm("Utilization", share, below=limits.mfu_percent, minutes=10)
        self.alarm("ExpertLoad", load, above=limits.expert_load, minutes=10)
        self.alarm("GradientNorm", norm, above=limits.gradient_norm, minutes=3)
        self.alarm("NonFinite", broken, above=0, minutes=1)
        self.alarm("DroppedTokens", dropped, above=0, minutes=1)
        self.alarm("CheckpointAge", age, above=limits.checkpoint_seconds, minutes=3)
        self.dashboard = cloudwatch.Dashboard(
            self,
            "Dashboard",
            widgets=[
                [_graph("Loss, nats a token", self._metric("Loss")), _graph("Step", step)],
                [_graph("Tokens a second", speed), _graph("Model FLOPs utilization, %", share)],
                [
                    _graph("Fullest expert, as a multiple of the mean", load),
                    _graph("Dropped tokens, steps without a finite loss", dropped, broken),
                ],
                [_graph("Norm of the gradient", norm), _graph("Age of the checkpoint, s", age)],
            ],
        )

    def show(self, title: str, *metrics: cloudwatch.IMetric) -> None:
        """Add a graph to the dashboard."""
        self.dashboard.add_widgets(_graph(title, *metrics))

    def alarm(
        self,
        name: str,
        metric: cloudwatch.IMetric,
        *,
        minutes: int,
        above: float | None = None,
        below: float | None = None,
    ) -> cloudwatch.Alarm:
        """Return an alarm that tells the topic of its beginning and its end."""
        operators = cloudwatch.ComparisonOperator
        alarm = cloudwatch.Alarm(
            self,
            name,
            metric=metric,
            threshold=above if above is not None else below or 0,
            comparison_operator=operators.GREATER_THAN_THRESHOLD
            if above is not None
            else operators.LESS_THAN_THRESHOLD,
            evaluation_periods=minutes,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )
        notice = actions.SnsAction(self._topic)
        alarm.add_alarm_action(notice)
        alarm.add_ok_action(notice)
        return alarm

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


def _graph(title: str, *metrics: cloudwatch.IMetric) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(title=title, left=list(metrics), width=12)
