"""What tests of constructs and stacks share. Import it before aws_cdk: it sets the environment."""

import json
import os
from pathlib import Path
from typing import Any

# The built-in validation takes seconds; tests/stacks/test_gates.py runs it once, on everything.
os.environ["CDK_VALIDATION"] = "false"
os.environ["CDK_DISABLE_STACK_TRACE"] = "1"  # where each construct was made, which none asks

import aws_cdk as cdk
from aws_cdk.assertions import Template

ROOT = Path(__file__).parents[1]
FLAGS: dict[str, Any] = json.loads((ROOT / "cdk.json").read_text())["context"]
ENV = cdk.Environment(account="111122223333", region="us-east-1")


def new_app(**context: str) -> cdk.App:
    return cdk.App(context={**FLAGS, **context})


def new_stack(name: str = "test") -> cdk.Stack:
    return cdk.Stack(new_app(), name, env=ENV)


def json_of(stack: cdk.Stack) -> dict[str, Any]:
    return dict(Template.from_stack(stack).to_json())


def resources(template: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    found = template["Resources"].items()
    return {name: resource for name, resource in found if resource["Type"] == kind}


def only(template: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the properties of the one resource of this type."""
    [resource] = resources(template, kind).values()
    return dict(resource["Properties"])


def literal(value: Any) -> str:
    """Return the literal text in a resolved value, references as their target in braces."""
    match value:
        case {"Fn::Join": [glue, parts]}:
            return str(glue).join(literal(part) for part in parts)
        case {"Fn::Base64": inner}:
            return literal(inner)
        case dict():
            return "{" + str(next(iter(value.values()))) + "}"
        case _:
            return str(value)
