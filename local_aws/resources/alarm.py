"""CloudWatch alarms, those on an expression over several metrics among them.

The control plane keeps alarms on one metric. One on an expression is kept and shown in the same
way, with its `Metrics`; its state stays INSUFFICIENT_DATA, since nothing here computes it.
"""

from ministack.services import cloudwatch

from local_aws.resources.table import Aws, Made, Properties, Resource, Type

_NUMBERS = {
    **dict.fromkeys(("Period", "EvaluationPeriods", "DatapointsToAlarm"), int),
    "Threshold": float,
}


def _put(aws: Aws, name: str, properties: Properties) -> Made:
    given = {
        key: _NUMBERS[key](value) if key in _NUMBERS else value for key, value in properties.items()
    }
    # Names that begin with aws: are the service's own; CloudFormation adds some, the API takes none.
    tags = [tag for tag in given.pop("Tags", []) if not tag["Key"].lower().startswith("aws:")]
    metrics = given.pop("Metrics", None)
    aws.client("cloudwatch").put_metric_alarm(**{**given, "AlarmName": name, "Tags": tags})
    if metrics is not None:
        cloudwatch._alarms[name]["Metrics"] = metrics
    return Made(name, {"Arn": f"arn:aws:cloudwatch:{aws.region}:{aws.account}:alarm:{name}"})


def _create(aws: Aws, resource: Resource) -> Made:
    name = resource.properties.get("AlarmName") or resource.name(255)
    return _put(aws, name, resource.properties)


def _update(aws: Aws, name: str, resource: Resource) -> Made:
    return _put(aws, name, resource.properties)


def _delete(aws: Aws, name: str, _: Properties) -> None:
    aws.client("cloudwatch").delete_alarms(AlarmNames=[name])


ALARM = Type("AWS::CloudWatch::Alarm", _create, _delete, _update)
