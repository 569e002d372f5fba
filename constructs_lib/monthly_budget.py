"""A budget that says when an account costs more than it should."""

from collections.abc import Sequence

from aws_cdk import aws_budgets as budgets
from constructs import Construct


class MonthlyBudget(Construct):
    """Cost budget of an account, or of some services in it.

    Not filtered by tag: a filter on a cost allocation tag that nobody activated counts nothing,
    and a budget that stays at zero looks like a cheap month. Services need no activation.

    Args:
        usd: Limit, in US dollars a month.
        email: Hears when 80% is spent and when the forecast passes 100%. Left out, nobody does.
        services: What is counted, by the names of the bill; left out, all.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        usd: float,
        email: str | None = None,
        services: Sequence[str] = (),
    ) -> None:
        super().__init__(scope, construct_id)
        notices = [("ACTUAL", 80), ("FORECASTED", 100)]
        budgets.CfnBudget(
            self,
            "Resource",
            budget=budgets.CfnBudget.BudgetDataProperty(
                budget_type="COST",
                time_unit="MONTHLY",
                budget_limit=budgets.CfnBudget.SpendProperty(amount=usd, unit="USD"),
                cost_filters={"Service": list(services)} if services else None,
            ),
            notifications_with_subscribers=[
                _notice(kind, percent, email) for kind, percent in notices
            ]
            if email
            else None,
        )


def _notice(
    kind: str, percent: float, email: str
) -> budgets.CfnBudget.NotificationWithSubscribersProperty:
    return budgets.CfnBudget.NotificationWithSubscribersProperty(
        notification=budgets.CfnBudget.NotificationProperty(
            comparison_operator="GREATER_THAN",
            notification_type=kind,
            threshold=percent,
            threshold_type="PERCENTAGE",
        ),
        subscribers=[
            budgets.CfnBudget.SubscriberProperty(address=email, subscription_type="EMAIL")
        ],
    )
