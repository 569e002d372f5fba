"""Alarms that tell a topic of their beginning and of their end."""

from aws_cdk import CfnCondition
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_sns as sns
from constructs import Construct

BREACHING = cloudwatch.TreatMissingData.BREACHING
NOT_BREACHING = cloudwatch.TreatMissingData.NOT_BREACHING
_OPERATORS = cloudwatch.ComparisonOperator


class Alarms:
    """Makes the alarms of one construct. It is none itself: they are that construct's children.

    Args:
        scope: Whose children they become.
        topic: Hears of every alarm, and of its end.
    """

    def __init__(self, scope: Construct, topic: sns.ITopic) -> None:
        self._scope, self._topic = scope, topic

    def above(
        self,
        name: str,
        metric: cloudwatch.IMetric,
        limit: float,
        *,
        periods: int,
        condition: CfnCondition | None = None,
    ) -> cloudwatch.Alarm:
        """Return an alarm that rings when `metric` was above `limit` in so many periods of it.

        Args:
            name: Of the construct.
            metric: Without a value it is quiet.
            limit: In the metric's unit.
            periods: One after the other.
            condition: Where it does not hold, there is no alarm.
        """
        return self._add(
            name,
            metric,
            limit,
            operator=_OPERATORS.GREATER_THAN_THRESHOLD,
            periods=periods,
            missing=NOT_BREACHING,
            condition=condition,
        )

    def below(
        self,
        name: str,
        metric: cloudwatch.IMetric,
        limit: float,
        *,
        periods: int,
        missing: cloudwatch.TreatMissingData = NOT_BREACHING,
        condition: CfnCondition | None = None,
    ) -> cloudwatch.Alarm:
        """Return one that rings when it was below. `missing` says what no value means."""
        return self._add(
            name,
            metric,
            limit,
            operator=_OPERATORS.LESS_THAN_THRESHOLD,
            periods=periods,
            missing=missing,
            condition=condition,
        )

    def _add(
        self,
        name: str,
        metric: cloudwatch.IMetric,
        limit: float,
        *,
        operator: cloudwatch.ComparisonOperator,
        periods: int,
        missing: cloudwatch.TreatMissingData,
        condition: CfnCondition | None,
    ) -> cloudwatch.Alarm:
        alarm = cloudwatch.Alarm(
            self._scope,
            name,
            metric=metric,
            threshold=limit,
            comparison_operator=operator,
            evaluation_periods=periods,
            treat_missing_data=missing,
        )
        notice = actions.SnsAction(self._topic)
        alarm.add_alarm_action(notice)
        alarm.add_ok_action(notice)
        if condition:
            child = alarm.node.default_child
            assert isinstance(child, cloudwatch.CfnAlarm)  # noqa: S101  what an Alarm is made of
            child.cfn_options.condition = condition
        return alarm


def graph(title: str, *metrics: cloudwatch.IMetric) -> cloudwatch.GraphWidget:
    """Return a graph of half a dashboard's width."""
    return cloudwatch.GraphWidget(title=title, left=list(metrics), width=12)
