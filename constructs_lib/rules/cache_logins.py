"""Logins of caches."""

import re
from collections.abc import Iterator
from typing import Any

from constructs_lib.rules.rule import Breach, Rule, Template, as_list, resources, text

# A password as it is, where a reference to a secret belongs.
_REFERENCE = re.compile(r"\{\{resolve:(secretsmanager|ssm-secure):")


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, group in resources(template, "AWS::ElastiCache::ReplicationGroup"):
        token, users = group.get("AuthToken"), group.get("UserGroupIds")
        if (not token and not users) or (token and not _is_reference(token)):
            yield Breach(logical_id, "Properties.AuthToken")
    for logical_id, cache in resources(template, "AWS::ElastiCache::ServerlessCache"):
        if not cache.get("UserGroupId"):
            yield Breach(logical_id, "Properties.UserGroupId")
    for logical_id, user in resources(template, "AWS::ElastiCache::User"):
        yield from _user(logical_id, user)


def _user(logical_id: str, user: dict[str, Any]) -> Iterator[Breach]:
    mode = user.get("AuthenticationMode", {})
    passwords = [*as_list(user.get("Passwords")), *as_list(mode.get("Passwords"))]
    off = str(user.get("AccessString", "")).split()[:1] == ["off"]
    if not off and not passwords and mode.get("Type") != "iam":
        yield Breach(logical_id, "Properties.AuthenticationMode")
    if not all(map(_is_reference, passwords)):
        yield Breach(logical_id, "Properties.AuthenticationMode")


def _is_reference(value: Any) -> bool:
    return bool(_REFERENCE.search(text(value)))


RULE = Rule(
    id="CacheLogins",
    says="A cache must ask for a login whose password is in a secret: templates are readable.",
    fix="give it a user group, or an AuthToken, with {{resolve:secretsmanager:...}} as password",
    check=_check,
)
