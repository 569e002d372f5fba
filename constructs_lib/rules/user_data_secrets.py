"""Secrets in user data."""

import re
from collections.abc import Iterator
from typing import Any

from constructs_lib.rules.rule import Breach, Rule, Template, resources

_SECRET = re.compile(
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|(?i:password|passwd|secret|token|api_?key)\s*[=:]\s*['\"]?[A-Za-z0-9+/_.-]{12,}"
    r"|\{\{resolve:(secretsmanager|ssm-secure):"
)


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, properties in resources(template, "AWS::EC2::LaunchTemplate"):
        if _SECRET.search(_literal(properties["LaunchTemplateData"].get("UserData", ""))):
            yield Breach(logical_id, "Properties.LaunchTemplateData.UserData")


def _literal(value: Any) -> str:
    """Return the literal text below `value`, a reference as `{}`: what it refers to is no text."""
    if isinstance(value, dict) and set(value) & {"Ref", "Fn::GetAtt", "Fn::ImportValue"}:
        return "{}"
    if isinstance(value, dict):
        return "".join(_literal(child) for child in value.values())
    if isinstance(value, list):
        return "".join(_literal(child) for child in value)
    return str(value)


RULE = Rule(
    id="UserDataSecrets",
    says="User data is readable by everyone who may describe launch templates; no secret in it.",
    fix="let the node read the secret from Secrets Manager with its role",
    check=_check,
)
