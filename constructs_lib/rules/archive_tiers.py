"""Archive tiers of S3 Intelligent-Tiering."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources

_ARCHIVES = {"GLACIER", "DEEP_ARCHIVE"}


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, bucket in resources(template, "AWS::S3::Bucket"):
        if bucket.get("IntelligentTieringConfigurations"):
            yield Breach(logical_id, "Properties.IntelligentTieringConfigurations")
        rules = bucket.get("LifecycleConfiguration", {}).get("Rules", [])
        steps = [step for rule in rules for step in rule.get("Transitions", [])]
        if any(step["StorageClass"] in _ARCHIVES for step in steps):
            yield Breach(logical_id, "Properties.LifecycleConfiguration")


RULE = Rule(
    id="ArchiveTiers",
    says="An archived object cannot be read for minutes to hours: nodes that fetch weights would "
    "not start. The tiering configurations that CDK offers only switch archive tiers on.",
    fix="use a lifecycle transition to INTELLIGENT_TIERING on day 0",
    check=_check,
)
