"""What a rule is: it reads one synthesized template and yields what breaks it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Template = Mapping[str, Any]


@dataclass(frozen=True)
class Breach:
    """One resource that breaks a rule.

    Args:
        resource: Its logical id.
        location: The property at fault, such as `Properties.KmsKeyId`.
    """

    resource: str
    location: str


@dataclass(frozen=True)
class Rule:
    """A check of our own, for what cdk-nag and CloudFormation's validation do not see.

    Args:
        id: Its name in reports and acknowledgements.
        says: What must hold, and why.
        fix: What to change.
        check: Yields what breaks it in a template.
    """

    id: str
    says: str
    fix: str
    check: Callable[[Template], Iterator[Breach]]


def resources(template: Template, *types: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield logical id and properties of every resource of these types."""
    for logical_id, resource in template.get("Resources", {}).items():
        if resource["Type"] in types:
            yield logical_id, resource.get("Properties", {})


def as_list(value: Any) -> list[Any]:
    """Return the items of what CloudFormation lets one write as one item or as a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def statements(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every policy statement anywhere below `value`."""
    if isinstance(value, dict):
        if "Effect" in value and ("Action" in value or "NotAction" in value):
            yield value
        for child in value.values():
            yield from statements(child)
    elif isinstance(value, list):
        for child in value:
            yield from statements(child)


def text(value: Any) -> str:
    """Return all literal text anywhere below `value`, in order."""
    if isinstance(value, dict):
        return "".join(text(child) for child in value.values())
    if isinstance(value, list):
        return "".join(text(child) for child in value)
    return str(value)
