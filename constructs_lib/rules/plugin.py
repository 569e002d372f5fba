"""Runs the rules over every template at synthesis."""

import json
from collections.abc import Iterable
from pathlib import Path

import jsii
from aws_cdk import (
    IPolicyValidationContext,
    IPolicyValidationPlugin,
    PolicyValidationPluginReport,
    PolicyViolatingResource,
    PolicyViolation,
)

from constructs_lib.rules.rule import Rule


@jsii.implements(IPolicyValidationPlugin)
class RulesPlugin:
    """Validation plugin: a breach fails the synthesis, unless acknowledged as `Isomorph::RULE`.

    Args:
        rules: What is checked.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = tuple(rules)

    @property
    def name(self) -> str:
        """Shown in reports, and the first part of acknowledgements."""
        return "Isomorph"

    @property
    def rule_ids(self) -> list[str] | None:
        """The ids of the rules."""
        return [rule.id for rule in self._rules]

    @property
    def version(self) -> str | None:
        """Not versioned apart from the app."""
        return None

    def validate(self, context: IPolicyValidationContext) -> PolicyValidationPluginReport:
        """Check every template; called by CDK."""
        violations = [
            violation for path in context.template_paths for violation in self._violations(path)
        ]
        return PolicyValidationPluginReport(success=not violations, violations=violations)

    def _violations(self, path: str) -> Iterable[PolicyViolation]:
        template = json.loads(Path(path).read_text())
        for rule in self._rules:
            broken = [
                PolicyViolatingResource(
                    resource_logical_id=breach.resource,
                    template_path=path,
                    locations=[breach.location],
                )
                for breach in rule.check(template)
            ]
            if broken:
                yield PolicyViolation(
                    rule_name=rule.id,
                    description=rule.says,
                    fix=rule.fix,
                    severity="error",
                    violating_resources=broken,
                )
