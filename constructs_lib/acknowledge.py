"""Acknowledging a security finding on one resource, with its reason."""

from collections.abc import Mapping
from typing import Any

from aws_cdk import Acknowledgment, Stack, Validations
from constructs import IConstruct


def acknowledge_wildcards(scope: IConstruct, reasons: Mapping[str, str]) -> None:
    """Say why policies in `scope` allow resources with a wildcard.

    Args:
        scope: The resource whose policies they are.
        reasons: By the resource as the policy has it, such as `*` or an ARN that ends in /*.
    """
    stack = Stack.of(scope)
    for resource, reason in reasons.items():
        finding = f"AwsSolutions-IAM5[Resource::{_flat(stack.resolve(resource))}]"
        Validations.of(scope).acknowledge(Acknowledgment(id=finding, reason=reason))


def _flat(value: Any) -> str:
    """Write a resolved value as cdk-nag does in the ids of its findings."""
    match value:
        case {"Fn::Join": [glue, parts]}:
            return str(glue).join(_flat(part) for part in parts)
        case {"Fn::ImportValue": name}:
            return str(name)
        case {"Fn::GetAtt": [resource, attribute]}:
            return f"<{resource}.{attribute}>"
        case {"Ref": name}:
            return f"<{name}>"
        case _:
            return str(value)
