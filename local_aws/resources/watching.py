"""Types that watch what a stack does and costs: budgets and composite alarms."""

from typing import Any

from ministack.services.cloudformation import provisioners

from local_aws.resources.table import Aws, Made, Properties, Resource, Type

_COMPOSITE_ALARM = frozenset(
    {
        "ActionsEnabled",
        "ActionsSuppressor",
        "ActionsSuppressorExtensionPeriod",
        "ActionsSuppressorWaitPeriod",
        "AlarmActions",
        "AlarmDescription",
        "AlarmName",
        "AlarmRule",
        "InsufficientDataActions",
        "OKActions",
        "Tags",
    }
)


def _budget_name(resource: Resource) -> str:
    return str(resource.properties["Budget"].get("BudgetName") or resource.name(100))


def _budget(resource: Resource) -> dict[str, Any]:
    budget = {**resource.properties["Budget"], "BudgetName": _budget_name(resource)}
    if "BudgetLimit" in budget:  # a number in templates, text in the API
        amount = budget["BudgetLimit"]["Amount"]
        budget["BudgetLimit"] = {**budget["BudgetLimit"], "Amount": str(amount)}
    return budget


def _create_budget(aws: Aws, resource: Resource) -> Made:
    notices = [
        {**entry, "Notification": {**entry["Notification"], "Threshold": _threshold(entry)}}
        for entry in resource.properties.get("NotificationsWithSubscribers", [])
    ]
    budget = _budget(resource)
    aws.client("budgets").create_budget(
        AccountId=aws.account,
        Budget=budget,
        NotificationsWithSubscribers=notices,
        ResourceTags=list(resource.properties.get("ResourceTags", [])),
    )
    return Made(budget["BudgetName"], {})


def _threshold(entry: dict[str, Any]) -> float:
    return float(entry["Notification"]["Threshold"])


def _update_budget(aws: Aws, name: str, resource: Resource) -> Made:
    # The API cannot change the notifications of a budget: it is made anew under its name.
    _delete_budget(aws, name, resource.properties)
    budget = {**resource.properties["Budget"], "BudgetName": name}
    return _create_budget(
        aws,
        Resource(resource.stack, resource.logical_id, {**resource.properties, "Budget": budget}),
    )


def _delete_budget(aws: Aws, name: str, _: Properties) -> None:
    aws.client("budgets").delete_budget(AccountId=aws.account, BudgetName=name)


def _put_composite_alarm(aws: Aws, name: str, properties: Properties) -> Made:
    aws.client("cloudwatch").put_composite_alarm(**{**properties, "AlarmName": name})
    return Made(name, {"Arn": f"arn:aws:cloudwatch:{aws.region}:{aws.account}:alarm:{name}"})


def _create_composite_alarm(aws: Aws, resource: Resource) -> Made:
    name = resource.properties.get("AlarmName") or resource.name(255)
    return _put_composite_alarm(aws, name, resource.properties)


def _update_composite_alarm(aws: Aws, name: str, resource: Resource) -> Made:
    return _put_composite_alarm(aws, name, resource.properties)


def keep_metric_math() -> None:
    """Let the control plane keep alarms over expressions; it does not evaluate them."""
    make = provisioners._cw_metric_alarm_record

    def make_any(name: str, properties: Properties) -> dict[str, Any]:
        if not properties.get("Metrics"):
            plain: dict[str, Any] = make(name, properties)
            return plain
        of_one_metric = {"MetricName": "-", "Namespace": "-"}
        others = {key: value for key, value in properties.items() if key != "Metrics"}
        record = make(name, {**others, **of_one_metric})
        for key in (*of_one_metric, "Dimensions", "ExtendedStatistic", "Period", "Statistic"):
            record.pop(key, None)
        return {**record, "Metrics": properties["Metrics"]}

    provisioners._cw_metric_alarm_record = make_any


def _delete_alarm(aws: Aws, name: str, _: Properties) -> None:
    aws.client("cloudwatch").delete_alarms(AlarmNames=[name])


WATCHING = (
    Type(
        "AWS::Budgets::Budget",
        frozenset({"Budget", "NotificationsWithSubscribers", "ResourceTags"}),
        _create_budget,
        _delete_budget,
        _update_budget,
    ),
    Type(
        "AWS::CloudWatch::CompositeAlarm",
        _COMPOSITE_ALARM,
        _create_composite_alarm,
        _delete_alarm,
        _update_composite_alarm,
    ),
)
