"""TLS of caches. cdk-nag looks at Redis alone, and not at the mode."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, group in resources(template, "AWS::ElastiCache::ReplicationGroup"):
        if group.get("TransitEncryptionEnabled") is not True:
            yield Breach(logical_id, "Properties.TransitEncryptionEnabled")
        elif group.get("TransitEncryptionMode", "required") != "required":
            yield Breach(logical_id, "Properties.TransitEncryptionMode")


RULE = Rule(
    id="CacheTransit",
    says="A cache must take TLS alone: `preferred` lets logins and values pass as plain text.",
    fix="set TransitEncryptionEnabled, and TransitEncryptionMode to required or leave it out",
    check=_check,
)
