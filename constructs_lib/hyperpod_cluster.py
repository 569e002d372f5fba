"""A HyperPod cluster: machines that train together, and stay while jobs come and go."""

from collections.abc import Sequence

from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from constructs_lib.hyperpod_groups import NodeGroup, Start, instance_group


class HyperPodCluster(Construct):
    """SageMaker HyperPod cluster, with Slurm to place jobs.

    Args:
        name: Physical name; its log group and metrics have it.
        groups: Its nodes.
        start: What a node starts with.
        subnet: Where all nodes are.
        security_group: Of all nodes.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        name: str,
        groups: Sequence[NodeGroup],
        start: Start,
        subnet: ec2.ISubnet,
        security_group: ec2.ISecurityGroup,
    ) -> None:
        super().__init__(scope, construct_id)
        self.name = name
        self.resource = sagemaker.CfnCluster(
            self,
            "Resource",
            cluster_name=name,
            instance_groups=[instance_group(each, start, slurm=True) for each in groups],
            orchestrator=sagemaker.CfnCluster.OrchestratorProperty(
                slurm=sagemaker.CfnCluster.ClusterOrchestratorSlurmConfigProperty(
                    slurm_config_strategy="Managed"
                )
            ),
            node_recovery="Automatic",
            vpc_config=sagemaker.CfnCluster.VpcConfigProperty(
                subnets=[subnet.subnet_id], security_group_ids=[security_group.security_group_id]
            ),
        )
        self.arn = self.resource.attr_cluster_arn
