"""Resources that a Lambda function imitates."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, resource in template.get("Resources", {}).items():
        kind = resource["Type"]
        if kind.startswith("Custom::") or kind == "AWS::CloudFormation::CustomResource":
            yield Breach(logical_id, "Type")


RULE = Rule(
    id="CustomResources",
    says="A custom resource is a function with wide rights that runs during deployments and can "
    "hang them. What CloudFormation cannot make, a command of ours does.",
    fix="use a native resource, or a command that works on what the stack has deployed",
    check=_check,
)
