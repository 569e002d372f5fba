"""Alarms of an endpoint: people hear of them, and an update that rings one is rolled back."""

from dataclasses import dataclass

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_sns as sns
from constructs import Construct

from constructs_lib.alarms import Alarms
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
        alarms = Alarms(self, topic)
        self.errors = _query("SUM(Invocation5XXErrors)", variant, "5xx")
        self.latency = _query("AVG(ModelLatency)", variant, "model latency, microseconds")
        there, slow = weights.present, limits.latency_seconds * 1e6
        self.rolling_back = (
            alarms.above("Errors", self.errors, limits.errors, periods=1, condition=there),
            alarms.above("Latency", self.latency, slow, periods=3, condition=there),
        )


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
