"""Security rules of our own, one a file, for what cdk-nag and the built-in validation miss.

A new rule is a file with a `RULE`, a line here, and an example of each kind in
tests/constructs_lib/test_rules.py.
"""

from constructs_lib.rules import (
    archive_tiers,
    cache_failover,
    cache_keys,
    cache_logins,
    cache_transit,
    cluster_scripts,
    cluster_types,
    cluster_volumes,
    control_plane,
    custom_resources,
    default_security_group,
    efa_groups,
    endpoint_keys,
    fixed_names,
    instance_metadata,
    log_bucket_encryption,
    log_groups,
    model_network,
    node_disks,
    open_egress,
    open_principal,
    pass_role,
    s3_endpoint_policy,
    silent_alarms,
    user_data_secrets,
)
from constructs_lib.rules.plugin import RulesPlugin
from constructs_lib.rules.rule import Breach, Rule, Template

RULES: tuple[Rule, ...] = (
    archive_tiers.RULE,
    cache_failover.RULE,
    cache_keys.RULE,
    cache_logins.RULE,
    cache_transit.RULE,
    cluster_scripts.RULE,
    cluster_volumes.RULE,
    control_plane.RULE,
    custom_resources.RULE,
    default_security_group.RULE,
    efa_groups.RULE,
    endpoint_keys.RULE,
    fixed_names.RULE,
    instance_metadata.RULE,
    log_bucket_encryption.RULE,
    log_groups.RULE,
    model_network.RULE,
    node_disks.RULE,
    open_egress.RULE,
    open_principal.RULE,
    pass_role.RULE,
    s3_endpoint_policy.RULE,
    silent_alarms.RULE,
    user_data_secrets.RULE,
)

__all__ = ["RULES", "Breach", "Rule", "RulesPlugin", "Template", "cluster_types"]
