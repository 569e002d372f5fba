"""Instance groups of a HyperPod cluster: which machines, in what role, with which disks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aws_cdk import aws_sagemaker as sagemaker

Role = Literal["controller", "login", "workers", "data"]
_SLURM_NODES = {
    "controller": "Controller",
    "login": "Login",
    "workers": "Compute",
    "data": "Compute",
}


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Nodes of one type that do one thing.

    Args:
        name: Of the group.
        role: Controller and login are Slurm's; workers train; data prepares what they read.
        instance_type: Such as ml.p5e.48xlarge.
        count: Nodes.
        min_count: Nodes without which the group is not in service; left out, all.
        volume_gib: Disk besides the system's, at /opt/sagemaker.
        plan_arn: The training plan that its nodes come from.
        partition: Of Slurm; left out, the group's name.
        deep_health_checks: What is tested before a node takes work.
    """

    name: str
    role: Role
    instance_type: str
    count: int
    min_count: int | None = None
    volume_gib: int = 100
    plan_arn: str | None = None
    partition: str | None = None
    deep_health_checks: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a node starts with.

    Args:
        scripts: s3:// prefix of the lifecycle scripts.
        entry: The script that HyperPod runs.
        role_arn: What the node may do.
        volume_key_arn: Encrypts its disks.
    """

    scripts: str
    entry: str
    role_arn: str
    volume_key_arn: str


def instance_group(
    group: NodeGroup, start: Start, *, slurm: bool
) -> sagemaker.CfnCluster.ClusterInstanceGroupProperty:
    """Return a group in CloudFormation's words."""
    cluster = sagemaker.CfnCluster
    return cluster.ClusterInstanceGroupProperty(
        instance_group_name=group.name,
        instance_type=group.instance_type,
        instance_count=group.count,
        min_instance_count=group.min_count,
        execution_role=start.role_arn,
        life_cycle_config=cluster.ClusterLifeCycleConfigProperty(
            source_s3_uri=start.scripts, on_create=start.entry
        ),
        instance_storage_configs=[
            cluster.ClusterInstanceStorageConfigProperty(ebs_volume_config=volume)
            for volume in (
                cluster.ClusterEbsVolumeConfigProperty(
                    root_volume=True, volume_kms_key_id=start.volume_key_arn
                ),
                cluster.ClusterEbsVolumeConfigProperty(
                    volume_size_in_gb=group.volume_gib, volume_kms_key_id=start.volume_key_arn
                ),
            )
        ],
        on_start_deep_health_checks=list(group.deep_health_checks) or None,
        slurm_config=_slurm_node(group) if slurm else None,
        training_plan_arn=group.plan_arn,
    )


def _slurm_node(group: NodeGroup) -> sagemaker.CfnCluster.ClusterSlurmConfigProperty:
    node = _SLURM_NODES[group.role]
    return sagemaker.CfnCluster.ClusterSlurmConfigProperty(
        node_type=node,
        partition_names=[group.partition or group.name] if node == "Compute" else None,
    )
