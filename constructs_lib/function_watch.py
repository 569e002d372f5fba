"""Alarms and a dashboard for a function that serves a model with a window."""

from dataclasses import dataclass

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from constructs_lib.alarms import Alarms, graph

_MINUTE = Duration.minutes(1)


@dataclass(frozen=True, kw_only=True)
class FunctionLimits:
    """When to raise an alarm.

    Args:
        duration_share: Share of the timeout that the 99th percentile of the duration may reach.
        errors: Failed invocations in five minutes.
    """

    duration_share: float
    errors: int


class FunctionWatch(Construct):
    """Tells `topic` when the function is throttled, fails, nears its timeout or leaves work behind.

    Args:
        function: What is watched.
        dead_letters: What failed asynchronously.
        timeout_seconds: The function's.
        model: Value of the dimension Model of its figures.
        metric_namespace: Where they are.
        limits: When to raise an alarm.
        topic: Hears of every alarm, and of its end.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        function: lambda_.IFunction,
        dead_letters: sqs.IQueue,
        timeout_seconds: int,
        model: str,
        metric_namespace: str,
        limits: FunctionLimits,
        topic: sns.ITopic,
    ) -> None:
        super().__init__(scope, construct_id)
        self._namespace, self._model = metric_namespace, model
        alarms = Alarms(self, topic)
        throttles = function.metric_throttles(period=_MINUTE, statistic="Sum")
        errors = function.metric_errors(period=Duration.minutes(5), statistic="Sum")
        duration = function.metric_duration(period=_MINUTE, statistic="p99")
        left = dead_letters.metric_approximate_number_of_messages_visible(period=_MINUTE)
        share = timeout_seconds * 1000 * limits.duration_share
        alarms.above("Throttles", throttles, 0, periods=2)
        alarms.above("Errors", errors, limits.errors, periods=1)
        alarms.above("Duration", duration, share, periods=3)
        alarms.above("DeadLetters", left, 0, periods=1)
        invocations = function.metric_invocations(period=_MINUTE, statistic="Sum")
        self.dashboard = cloudwatch.Dashboard(
            self,
            "Dashboard",
            widgets=[
                [
                    graph("Invocations, throttles, errors", invocations, throttles, errors),
                    graph("Duration, p99", duration),
                ],
                [
                    graph("Window occupancy, %", self._figure("WindowOccupancy")),
                    graph("Cold starts", self._figure("ColdStart", "Sum")),
                ],
                [
                    graph("Memory headroom, MiB", self._figure("MemoryHeadroom", "Minimum")),
                    graph("Tokens a second", self._figure("TokensPerSecond")),
                ],
                [
                    graph("Time to first token, p99", self._figure("TimeToFirstToken", "p99")),
                    graph("Cut by the timeout", self._figure("TimedOut", "Sum")),
                ],
            ],
        )

    def _figure(self, name: str, statistic: str = "Average") -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace=self._namespace,
            metric_name=name,
            dimensions_map={"Model": self._model},
            statistic=statistic,
            period=_MINUTE,
        )
