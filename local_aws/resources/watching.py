"""Types that watch what a stack does and costs: budgets and composite alarms."""

from typing import Any

from local_aws.resources.table import Aws, Made, Properties, Resource, Type


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
        AccountId=aws.account, Budget=budget, NotificationsWithSubscribers=notices
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


def _delete_alarm(aws: Aws, name: str, _: Properties) -> None:
    aws.client("cloudwatch").delete_alarms(AlarmNames=[name])


WATCHING = (
    Type("AWS::Budgets::Budget", _create_budget, _delete_budget, _update_budget),
    Type(
        "AWS::CloudWatch::CompositeAlarm",
        _create_composite_alarm,
        _delete_alarm,
        _update_composite_alarm,
    ),
)
