"""FSx for Lustre between a bucket and the nodes that train: data comes in, checkpoints go out."""

from dataclasses import dataclass

from aws_cdk import RemovalPolicy
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_fsx as fsx
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from constructs_lib.closed_group import ClosedGroup
from constructs_lib.hyperpod_groups import LustreMount
from constructs_lib.site import Site

# docs.aws.amazon.com/fsx/latest/LustreGuide/limit-access-security-groups.html
PORTS = ((988, 988), (1018, 1023))
MOUNT_PATH = "/fsx"


@dataclass(frozen=True, kw_only=True)
class Lustre:
    """Size of a file system.

    Args:
        capacity_gib: 1200, or a multiple of 2400.
        mb_s_per_tib: Throughput for each TiB.
    """

    capacity_gib: int = 1200
    mb_s_per_tib: int = 125


class TrainingStorage(Construct):
    """File system whose /data is the bucket's data/, and whose /checkpoints go to checkpoints/.

    What is in S3 stays there when the file system goes: it holds nothing that is not also in the
    bucket but files of the last seconds.

    Args:
        site: Network.
        subnet: Where it is, in the zone of the workers.
        nodes: Security group of the nodes that mount it.
        bucket: Data and checkpoints.
        key: Encrypts it.
        size: How large and how fast.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        site: Site,
        subnet: ec2.ISubnet,
        nodes: ec2.ISecurityGroup,
        bucket: s3.IBucket,
        key: kms.IKey,
        size: Lustre,
    ) -> None:
        super().__init__(scope, construct_id)
        self.security_group = _group(self, site, nodes)
        self.file_system = fsx.CfnFileSystem(
            self,
            "FileSystem",
            file_system_type="LUSTRE",
            file_system_type_version="2.15",
            storage_type="SSD",
            storage_capacity=size.capacity_gib,
            subnet_ids=[subnet.subnet_id],
            security_group_ids=[self.security_group.security_group_id],
            kms_key_id=key.key_arn,
            lustre_configuration=fsx.CfnFileSystem.LustreConfigurationProperty(
                deployment_type="PERSISTENT_2",
                per_unit_storage_throughput=size.mb_s_per_tib,
                data_compression_type="LZ4",
                automatic_backup_retention_days=0,  # the bucket has what matters
            ),
        )
        self.file_system.apply_removal_policy(RemovalPolicy.DESTROY)
        every = ["NEW", "CHANGED", "DELETED"]
        data = _link(self, "Data", self.file_system, "data", bucket, into=every, out=every)
        runs = _link(self, "Checkpoints", self.file_system, "checkpoints", bucket, out=every)
        self.links = (data, runs)
        self.mount = LustreMount(
            dns_name=self.file_system.attr_dns_name,
            mount_name=self.file_system.attr_lustre_mount_name,
            path=MOUNT_PATH,
        )


def _group(scope: Construct, site: Site, nodes: ec2.ISecurityGroup) -> ClosedGroup:
    """Return the file servers' group: Lustre's ports to and from nodes and each other."""
    group = ClosedGroup(scope, "SecurityGroup", vpc=site.vpc, description="Lustre file servers")
    for first, last in PORTS:
        port = ec2.Port.tcp_range(first, last)
        for other, whom in ((group, "file servers"), (nodes, "nodes")):
            group.add_ingress_rule(other, port, f"Lustre, from {whom}")
            group.add_egress_rule(other, port, f"Lustre, to {whom}")
        # Remote rules stay in this stack: they belong to the nodes' group.
        nodes.add_ingress_rule(group, port, "Lustre, from file servers")
        nodes.add_egress_rule(group, port, "Lustre, to file servers")
    return group


def _link(
    scope: Construct,
    name: str,
    file_system: fsx.CfnFileSystem,
    prefix: str,
    bucket: s3.IBucket,
    *,
    into: list[str] | None = None,
    out: list[str],
) -> fsx.CfnDataRepositoryAssociation:
    link = fsx.CfnDataRepositoryAssociation
    return link(
        scope,
        name,
        file_system_id=file_system.ref,
        file_system_path=f"/{prefix}",
        data_repository_path=f"s3://{bucket.bucket_name}/{prefix}/",
        batch_import_meta_data_on_create=into is not None,
        s3=link.S3Property(
            auto_import_policy=link.AutoImportPolicyProperty(events=into) if into else None,
            auto_export_policy=link.AutoExportPolicyProperty(events=out),
        ),
    )
