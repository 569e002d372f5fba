"""Instance groups of a HyperPod cluster: which machines, in what role, where, with which disks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_sagemaker as sagemaker

Role = Literal["controller", "login", "workers", "data"]
Capacity = Literal["on_demand", "spot"]
Interface = Literal["efa", "efa-only"]
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
        zone: Where its nodes are; left out, where the cluster's are.
        plan_arn: The training plan that its nodes come from.
        capacity: How its nodes are bought; left out, on demand or by the plan.
        interface: Of a node's EFA cards: with an address each, or for EFA alone; left out,
            HyperPod chooses.
        partition: Of Slurm; left out, the group's name.
        deep_health_checks: What is tested before a node takes work.
        threads_per_core: 1 switches hyper-threads off; left out, as the type has them.
        labels: Of its nodes in Kubernetes.
    """

    name: str
    role: Role
    instance_type: str
    count: int
    min_count: int | None = None
    volume_gib: int = 100
    zone: str | None = None
    plan_arn: str | None = None
    capacity: Capacity | None = None
    interface: Interface | None = None
    partition: str | None = None
    deep_health_checks: Sequence[str] = ()
    threads_per_core: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a node starts with.

    Args:
        scripts: s3:// prefix of the lifecycle scripts.
        entry: The script that HyperPod runs.
        role_arn: What the node may do.
        volume_key_arn: Encrypts its disks.
        lustre: The file system that HyperPod mounts; left out, none.
    """

    scripts: str
    entry: str
    role_arn: str
    volume_key_arn: str
    lustre: "LustreMount | None" = None


@dataclass(frozen=True, kw_only=True)
class LustreMount:
    """A file system to mount.

    Args:
        dns_name: Of its servers.
        mount_name: What they call it.
        path: Where nodes have it.
    """

    dns_name: str
    mount_name: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where nodes are.

    Args:
        subnets: The private subnet of each zone.
        zone: The zone of groups that name none.
        security_group: Of all nodes, in every zone.
    """

    subnets: Mapping[str, ec2.ISubnet]
    zone: str
    security_group: ec2.ISecurityGroup

    def network(self, zone: str | None = None) -> sagemaker.CfnCluster.VpcConfigProperty:
        """Return subnet and security group of nodes in a zone."""
        return sagemaker.CfnCluster.VpcConfigProperty(
            subnets=[self.subnets[zone or self.zone].subnet_id],
            security_group_ids=[self.security_group.security_group_id],
        )


def instance_group(
    group: NodeGroup, start: Start, place: Place, *, slurm: bool
) -> sagemaker.CfnCluster.ClusterInstanceGroupProperty:
    """Return a group in CloudFormation's words."""
    cluster = sagemaker.CfnCluster
    kubernetes = cluster.ClusterKubernetesConfigProperty(labels=dict(group.labels))
    return cluster.ClusterInstanceGroupProperty(
        capacity_requirements=_capacity(group),
        instance_group_name=group.name,
        instance_type=group.instance_type,
        instance_count=group.count,
        min_instance_count=group.min_count,
        network_interface=_interface(group),
        execution_role=start.role_arn,
        life_cycle_config=cluster.ClusterLifeCycleConfigProperty(
            source_s3_uri=start.scripts, on_create=start.entry
        ),
        instance_storage_configs=[
            *_disks(group, start.volume_key_arn),
            *([_mount(start.lustre)] if start.lustre else []),
        ],
        kubernetes_config=kubernetes if group.labels and not slurm else None,
        on_start_deep_health_checks=list(group.deep_health_checks) or None,
        override_vpc_config=None if group.zone in (None, place.zone) else place.network(group.zone),
        slurm_config=_slurm_node(group) if slurm else None,
        threads_per_core=group.threads_per_core,
        training_plan_arn=group.plan_arn,
    )


def _capacity(
    group: NodeGroup,
) -> sagemaker.CfnCluster.ClusterCapacityRequirementsProperty | None:
    """Return which of the two ways; neither has an option yet, so each is an empty object."""
    requirements = sagemaker.CfnCluster.ClusterCapacityRequirementsProperty
    if group.capacity is None:
        return None
    return requirements(spot={}) if group.capacity == "spot" else requirements(on_demand={})


def _interface(group: NodeGroup) -> sagemaker.CfnCluster.ClusterNetworkInterfaceProperty | None:
    if group.interface is None:
        return None
    return sagemaker.CfnCluster.ClusterNetworkInterfaceProperty(interface_type=group.interface)


def _disks(
    group: NodeGroup, key_arn: str
) -> list[sagemaker.CfnCluster.ClusterInstanceStorageConfigProperty]:
    """Return the system's disk, whose size AWS decides, and the one for what is installed."""
    cluster = sagemaker.CfnCluster
    volumes = (
        cluster.ClusterEbsVolumeConfigProperty(root_volume=True, volume_kms_key_id=key_arn),
        cluster.ClusterEbsVolumeConfigProperty(
            volume_size_in_gb=group.volume_gib, volume_kms_key_id=key_arn
        ),
    )
    return [
        cluster.ClusterInstanceStorageConfigProperty(ebs_volume_config=volume) for volume in volumes
    ]


def _mount(lustre: LustreMount) -> sagemaker.CfnCluster.ClusterInstanceStorageConfigProperty:
    cluster = sagemaker.CfnCluster
    return cluster.ClusterInstanceStorageConfigProperty(
        fsx_lustre_config=cluster.ClusterFsxLustreConfigProperty(
            dns_name=lustre.dns_name, mount_name=lustre.mount_name, mount_path=lustre.path
        )
    )


def _slurm_node(group: NodeGroup) -> sagemaker.CfnCluster.ClusterSlurmConfigProperty:
    node = _SLURM_NODES[group.role]
    return sagemaker.CfnCluster.ClusterSlurmConfigProperty(
        node_type=node,
        partition_names=[group.partition or group.name] if node == "Compute" else None,
    )
