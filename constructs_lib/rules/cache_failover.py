"""Failover of caches."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, group in resources(template, "AWS::ElastiCache::ReplicationGroup"):
        clusters = int(group.get("NumCacheClusters", 1))
        second = int(group.get("ReplicasPerNodeGroup", clusters - 1)) > 0
        for name in ("AutomaticFailoverEnabled", "MultiAZEnabled"):
            if group.get(name) is True and not second:
                yield Breach(logical_id, f"Properties.{name}")


RULE = Rule(
    id="CacheFailover",
    says="A cache of one node cannot fail over: the service refuses it during the deployment.",
    fix="give each shard a replica, or switch failover and Multi-AZ off",
    check=_check,
)
