"""Lambda functions with the properties that the control plane drops."""

from typing import Any

from ministack.services.cloudformation import provisioners

from local_aws.functions.runner import FunctionRunner
from local_aws.resources.table import Aws, Made, Properties, Resource, Type

_BY_CONTROL_PLANE = {
    *("Architectures", "Code", "Description", "Environment", "EphemeralStorage", "Handler"),
    *("LoggingConfig", "MemorySize", "PackageType", "Role", "Runtime", "SnapStart", "Tags"),
    *("Timeout", "TracingConfig"),
}
_APPLIED = ("DeadLetterConfig", "ReservedConcurrentExecutions", "VpcConfig")


def _apply(aws: Aws, name: str, properties: Properties) -> None:
    client = aws.client("lambda")
    letters: dict[str, Any] = properties.get("DeadLetterConfig") or {"TargetArn": ""}
    inside = properties.get("VpcConfig") or {}
    network = {key: list(inside.get(key) or []) for key in ("SubnetIds", "SecurityGroupIds")}
    client.update_function_configuration(
        FunctionName=name, DeadLetterConfig=letters, VpcConfig=network
    )
    if "ReservedConcurrentExecutions" in properties:
        client.put_function_concurrency(
            FunctionName=name,
            ReservedConcurrentExecutions=int(properties["ReservedConcurrentExecutions"]),
        )
    else:
        client.delete_function_concurrency(FunctionName=name)


def _create(aws: Aws, resource: Resource) -> Made:
    name, attributes = provisioners._lambda_create(
        resource.logical_id, resource.properties, resource.stack
    )
    try:
        _apply(aws, name, resource.properties)
    except Exception:
        provisioners._lambda_delete(name, {})
        raise
    return Made(name, attributes)


def _update(aws: Aws, name: str, resource: Resource) -> Made:
    name, attributes = provisioners._lambda_update(
        name, resource.before, resource.properties, resource.stack, resource.logical_id
    )
    _apply(aws, name, resource.properties)
    return Made(name, attributes)


def function(runner: FunctionRunner) -> Type:
    """Return the type; deleting a function ends its execution environments."""

    def delete(aws: Aws, name: str, properties: Properties) -> None:
        provisioners._lambda_delete(name, properties)
        runner.end(aws.account, aws.region, name)

    return Type(
        "AWS::Lambda::Function",
        frozenset({*_BY_CONTROL_PLANE, *_APPLIED}),
        _create,
        delete,
        _update,
    )
