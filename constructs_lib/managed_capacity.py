"""Lambda managed instances: the function on EC2 of a chosen family, which Lambda looks after."""

from aws_cdk import Acknowledgment, Validations
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from constructs_lib.closed_group import ClosedGroup
from constructs_lib.function_size import ManagedInstances
from constructs_lib.site import Site

OPERATOR_POLICY = "AWSLambdaManagedEC2ResourceOperator"


class ManagedCapacity(Construct):
    """A capacity provider in the private subnets.

    Args:
        site: The network and keys that it is put into.
        instances: Which machines.
        architecture: The function's.
        log_group: Takes what the provider itself says.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        site: Site,
        instances: ManagedInstances,
        architecture: lambda_.Architecture,
        log_group: logs.ILogGroup,
    ) -> None:
        super().__init__(scope, construct_id)
        group = ClosedGroup(
            self,
            "SecurityGroup",
            vpc=site.vpc,
            description="Lambda managed instances: HTTPS to AWS",
        )
        group.allow_to_aws(site)
        types = [ec2.InstanceType(name) for name in instances.instance_types]
        self.provider = lambda_.CapacityProvider(
            self,
            "Provider",
            security_groups=[group],
            subnets=site.vpc.private_subnets,
            architectures=[architecture],
            instance_type_filter=lambda_.InstanceTypeFilter.allow(types),
            kms_key=site.volume_key,
            max_v_cpu_count=instances.max_vcpus,
            log_group=log_group,
        )
        for child in self.provider.node.find_all():
            Validations.of(child).acknowledge(
                Acknowledgment(
                    id=f"AwsSolutions-IAM4[Policy::arn:<AWS::Partition>:iam::aws:policy/"
                    f"{OPERATOR_POLICY}]",
                    reason="Lambda's own policy for the instances that it launches, ends and tags; "
                    "it limits each action to resources that Lambda manages",
                )
            )
