"""What the foundation gives to the other stacks, and how they get it.

Values cross over as CloudFormation exports with names of our own. They are always exported, used
or not, so switching an innovation on or off never changes the foundation's template; and
CloudFormation refuses to change or delete one that a stack still uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aws_cdk import Acknowledgment, Fn, Validations
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from constructs import Construct

from constructs_lib import Site
from stacks.innovation import stack_name as stack_name  # where no CDK is needed for it


def export_name(environment: str, output: str) -> str:
    """Return the name under which the foundation exports one of its outputs."""
    return f"{environment}-foundation-{output}"


@dataclass(frozen=True, kw_only=True)
class Base:
    """The foundation as another stack sees it.

    Args:
        environment: Name of the environment.
        lifecycle_bucket: Name of the bucket of lifecycle scripts, as synthesis must know it.
        cidr: Addresses of the VPC; a literal, as security checks cannot read an import.
        availability_zones: Zones of its subnets.
        s3_prefix_list: Id of the region's managed prefix list for S3.
        retained: Whether data outlives its stack.
        email: Hears of overspending, if anybody does.
        wheelhouses: Folder of the built wheels.
    """

    environment: str
    lifecycle_bucket: str
    cidr: str
    availability_zones: Sequence[str]
    s3_prefix_list: str
    retained: bool
    wheelhouses: Path
    email: str | None = None

    def site(self, scope: Construct) -> Site:
        """Return network, keys and sinks as handles inside of `scope`."""
        return Site(
            vpc=self._vpc(scope),
            cidr=self.cidr,
            endpoints=ec2.SecurityGroup.from_security_group_id(
                scope, "Endpoints", self._value("EndpointSecurityGroup"), mutable=False
            ),
            s3_prefix_list=self.s3_prefix_list,
            volume_key=self._key(scope, "VolumeKeyArn"),
            log_key=self._key(scope, "LogKeyArn"),
            access_logs=s3.Bucket.from_bucket_name(
                scope, "AccessLogs", self._value("AccessLogBucket")
            ),
            alarm_topic=sns.Topic.from_topic_arn(scope, "Alarms", self._value("AlarmTopicArn")),
        )

    def _vpc(self, scope: Construct) -> ec2.IVpc:
        numbers = range(1, len(self.availability_zones) + 1)
        vpc = ec2.Vpc.from_vpc_attributes(
            scope,
            "Vpc",
            vpc_id=self._value("VpcId"),
            availability_zones=list(self.availability_zones),
            private_subnet_ids=[self._value(f"PrivateSubnet{number}") for number in numbers],
            isolated_subnet_ids=[self._value(f"IsolatedSubnet{number}") for number in numbers],
        )
        for subnet in (*vpc.private_subnets, *vpc.isolated_subnets):
            Validations.of(subnet).acknowledge(
                Acknowledgment(
                    id="@aws-cdk/aws-ec2:noSubnetRouteTableId",
                    reason="routes belong to the foundation; nothing here reads a route table",
                )
            )
        return vpc

    def model_bucket(self, scope: Construct) -> tuple[s3.IBucket, kms.IKey]:
        """Return the bucket of the weights, and the key that encrypts it."""
        bucket = s3.Bucket.from_bucket_name(scope, "Models", self._value("ModelBucket"))
        return bucket, self._key(scope, "ModelKeyArn")

    def training_bucket(self, scope: Construct) -> s3.IBucket:
        """Return the bucket of training data and checkpoints."""
        return s3.Bucket.from_bucket_name(scope, "Training", self._value("TrainingBucket"))

    def scripts_bucket(self, scope: Construct) -> tuple[s3.IBucket, kms.IKey]:
        """Return the bucket of lifecycle scripts and code of training, and its key."""
        bucket = s3.Bucket.from_bucket_name(scope, "Lifecycle", self.lifecycle_bucket)
        return bucket, self._key(scope, "ModelKeyArn")

    def _key(self, scope: Construct, output: str) -> kms.IKey:
        return kms.Key.from_key_arn(scope, output, self._value(output))

    def _value(self, output: str) -> str:
        return Fn.import_value(export_name(self.environment, output))
