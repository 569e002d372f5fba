"""Keys of caches at rest."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, group in resources(template, "AWS::ElastiCache::ReplicationGroup"):
        if group.get("AtRestEncryptionEnabled") is not True or not group.get("KmsKeyId"):
            yield Breach(logical_id, "Properties.KmsKeyId")
    for logical_id, cache in resources(template, "AWS::ElastiCache::ServerlessCache"):
        if not cache.get("KmsKeyId"):
            yield Breach(logical_id, "Properties.KmsKeyId")


RULE = Rule(
    id="CacheKeys",
    says="A cache must encrypt what it keeps with a key of ours.",
    fix="set AtRestEncryptionEnabled and KmsKeyId",
    check=_check,
)
