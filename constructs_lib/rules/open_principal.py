"""Resource policies that name everyone."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, as_list, resources, statements

_POLICIES = ("AWS::KMS::Key", "AWS::S3::BucketPolicy", "AWS::SNS::TopicPolicy")
# A condition on one of these limits everyone to an account of ours.
_LIMITS = {
    "aws:PrincipalAccount",
    "aws:PrincipalArn",
    "aws:PrincipalOrgID",
    "aws:SourceAccount",
    "aws:SourceArn",
    "kms:CallerAccount",
}


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, properties in resources(template, *_POLICIES):
        if any(_open(statement) for statement in statements(properties)):
            yield Breach(logical_id, "Properties.PolicyDocument")


def _open(statement: Template) -> bool:
    principal = statement.get("Principal")
    everyone = principal == "*" or (
        isinstance(principal, dict) and "*" in as_list(principal.get("AWS"))
    )
    conditions = statement.get("Condition", {}).values()
    limited = any(_LIMITS & set(condition) for condition in conditions)
    return statement["Effect"] == "Allow" and everyone and not limited


RULE = Rule(
    id="OpenPrincipal",
    says="A key, bucket or topic that allows everyone must say in a condition whose account.",
    fix="name the principal, or add a condition on kms:CallerAccount or aws:PrincipalAccount",
    check=_check,
)
