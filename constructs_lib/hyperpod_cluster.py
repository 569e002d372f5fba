"""A HyperPod cluster: machines that train together, and stay while jobs come and go."""

from collections.abc import Sequence
from dataclasses import dataclass

from aws_cdk import Acknowledgment, Fn, Validations
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from constructs_lib.hyperpod_groups import NodeGroup, Place, Start, instance_group
from constructs_lib.hyperpod_orchestrator import Eks, Slurm


@dataclass(frozen=True, kw_only=True)
class Care:
    """What HyperPod does for nodes by itself.

    Args:
        recovery: Reboot or replace a node that fails a health check.
        continuous: Bring nodes in one by one and keep trying, in place of all or nothing.
        checkpoint_memory_percent: Of the nodes' memory, for checkpoints that go to S3 later (EKS).
    """

    recovery: bool = True
    continuous: bool = False
    checkpoint_memory_percent: int | None = None


class HyperPodCluster(Construct):
    """SageMaker HyperPod cluster.

    Args:
        name: Physical name. Its log group, its metrics' dimension and its role's policy have it.
        groups: Its nodes.
        start: What a node starts with.
        place: Where nodes are.
        orchestrator: What places jobs.
        care: What HyperPod does by itself.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        name: str,
        groups: Sequence[NodeGroup],
        start: Start,
        place: Place,
        orchestrator: Slurm | Eks,
        care: Care,
    ) -> None:
        super().__init__(scope, construct_id)
        percent, slurm = care.checkpoint_memory_percent, isinstance(orchestrator, Slurm)
        self.name = name
        self.resource = sagemaker.CfnCluster(
            self,
            "Resource",
            cluster_name=name,
            instance_groups=[instance_group(each, start, place, slurm=slurm) for each in groups],
            node_provisioning_mode="Continuous" if care.continuous else None,
            node_recovery="Automatic" if care.recovery else "None",
            orchestrator=orchestrator.property(),
            tiered_storage_config=sagemaker.CfnCluster.TieredStorageConfigProperty(
                mode="Enable", instance_memory_allocation_percentage=percent
            )
            if percent
            else None,
            vpc_config=place.network(),
        )
        self.arn = self.resource.attr_cluster_arn
        # HyperPod makes this group when the first node starts, and does not take another.
        self.log_group_name = Fn.join(
            "/", [log_group_prefix(name), Fn.select(1, Fn.split(":cluster/", self.arn))]
        )
        _acknowledge(self.resource)


def log_group_prefix(cluster: str) -> str:
    """Return the name of a cluster's own log group, up to the cluster's random id."""
    return f"/aws/sagemaker/Clusters/{cluster}"


def _acknowledge(resource: sagemaker.CfnCluster) -> None:
    reasons = {
        "Isomorph::FixedNames": "metrics, logs and the role's policy have the name; it ends in a "
        "digest of what only creation can set, so a replacement has another",
        "CloudFormation-Validate::E3644": "the rule knows the types of a price list, which lacks "
        "those that are sold as training plans; our rule ClusterTypes has SageMaker's own list",
    }
    for rule, reason in reasons.items():
        Validations.of(resource).acknowledge(Acknowledgment(id=rule, reason=reason))
    # cfn-lint reads what is in the template.
    resource.add_metadata("cfn-lint", {"config": {"ignore_checks": ["E3644"]}})
