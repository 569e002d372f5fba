"""Alarms that nobody hears."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, alarm in resources(template, "AWS::CloudWatch::Alarm"):
        if not alarm.get("AlarmActions") or alarm.get("ActionsEnabled") is False:
            yield Breach(logical_id, "Properties.AlarmActions")


RULE = Rule(
    id="SilentAlarms",
    says="An alarm without an action tells nobody.",
    fix="add an alarm action, such as the foundation's alarm topic",
    check=_check,
)
