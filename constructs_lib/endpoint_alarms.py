"""Alarms of an endpoint: people hear of them, and an update that rings one is rolled back."""

from dataclasses import dataclass

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_sns as sns
from constructs import Construct

from constructs_lib.weights import Weights

_MINUTE = Duration.minutes(1)


@dataclass(frozen=True, kw_only=True)
class EndpointLimits:
    """When to raise an alarm.

    Args:
        latency_seconds: Mean time that the model takes, over a minute.
        errors: Answers with 5xx in a minute.
    """

    latency_seconds: float
    errors: int


class EndpointAlarms(Construct):
    """Two alarms over SageMaker's metrics of one variant.

    They find the metrics by the variant's name, with a query. The endpoint names its alarms, so an
    alarm that named the endpoint would close a circle, unless one of both had a fixed name.

    Args:
        variant: Its name, unique in the account and region.
        weights: Until there are any, there is no endpoint to watch.
        limits: When to ring.
        topic: Hears of every alarm, and of its end.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        variant: str,
        weights: Weights,
        limits: EndpointLimits,
        topic: sns.ITopic,
    ) -> None:
        super().__init__(scope, construct_id)
        self._topic, self._weights = topic, weights
        self.errors = _query("SUM(Invocation5XXErrors)", variant, "5xx")
        self.latency = _query("AVG(ModelLatency)", variant, "model latency, microseconds")
        self.rolling_back = (
            self._alarm("Errors", self.errors, above=limits.errors, minutes=1),
            self._alarm("Latency", self.latency, above=limits.latency_seconds * 1e6, minutes=3),
        )

    def _alarm(
        self, name: str, metric: cloudwatch.IMetric, *, above: float, minutes: int
    ) -> cloudwatch.Alarm:
        alarm = cloudwatch.Alarm(
            self,
            name,
            metric=metric,
            threshold=above,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
            evaluation_periods=minutes,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )
        notice = actions.SnsAction(self._topic)
        alarm.add_alarm_action(notice)
        alarm.add_ok_action(notice)
        child = alarm.node.default_child
        assert isinstance(child, cloudwatch.CfnAlarm)  # noqa: S101  what an Alarm is made of
        child.cfn_options.condition = self._weights.present
        return alarm


def _query(selected: str, variant: str, label: str) -> cloudwatch.MathExpression:
    # https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/cloudwatch-metrics-insights-alarms.html
    schema = 'SCHEMA("AWS/SageMaker", EndpointName,VariantName)'
    query = f"SELECT {selected} FROM {schema} WHERE VariantName = '{variant}'"  # noqa: S608  ours
    return cloudwatch.MathExpression(
        expression=query,
        using_metrics={},
        period=_MINUTE,
        label=label,
    )
