"""Log groups."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, group in resources(template, "AWS::Logs::LogGroup"):
        for name in ("RetentionInDays", "KmsKeyId"):
            if name not in group:
                yield Breach(logical_id, f"Properties.{name}")


RULE = Rule(
    id="LogGroups",
    says="A log group must be encrypted with a key of ours, and must not keep its logs for ever.",
    fix="give the log group a retention and an encryption_key",
    check=_check,
)
