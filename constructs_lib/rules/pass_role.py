"""Who may hand a role to a service."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from constructs_lib.rules.rule import Breach, Rule, Template, as_list, resources, statements


def _check(template: Template) -> Iterator[Breach]:
    policies = ("AWS::IAM::Role", "AWS::IAM::Policy", "AWS::IAM::ManagedPolicy")
    for logical_id, properties in resources(template, *policies):
        if any(_passes_any_role(statement) for statement in statements(properties)):
            yield Breach(logical_id, "Properties.PolicyDocument")


def _passes_any_role(statement: Template) -> bool:
    if statement["Effect"] != "Allow" or "*" not in as_list(statement.get("Resource")):
        return False
    if "NotAction" in statement:
        return True
    return any(
        fnmatchcase("iam:passrole", str(action).lower()) for action in as_list(statement["Action"])
    )


RULE = Rule(
    id="PassRole",
    says="iam:PassRole on every role lets its holder become the mightiest of them. cdk-nag's "
    "wildcard finding cannot be told apart from a harmless one once `*` is acknowledged.",
    fix="name the roles that may be passed",
    check=_check,
)
