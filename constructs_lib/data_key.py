"""A customer-managed key for one kind of data, and what AWS services may do with it."""

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

_USE = ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"]


class DataKey(kms.Key):
    """KMS key that rotates every year.

    Args:
        description: Which data it protects.
        retained: Keep the key when its stack is destroyed. What it encrypted needs it.
    """

    def __init__(
        self, scope: Construct, construct_id: str, *, description: str, retained: bool
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            description=description,
            enable_key_rotation=True,
            removal_policy=RemovalPolicy.RETAIN if retained else RemovalPolicy.DESTROY,
            pending_window=None if retained else Duration.days(7),
        )

    def allow_log_groups(self) -> None:
        """Let CloudWatch Logs encrypt this account's log groups."""
        stack = Stack.of(self)
        arn = f"arn:{stack.partition}:logs:{stack.region}:{stack.account}:log-group:*"
        self._allow(
            iam.ServicePrincipal(f"logs.{stack.region}.amazonaws.com"),
            _USE,
            {"ArnLike": {"kms:EncryptionContext:aws:logs:arn": arn}},
        )

    def allow_alarm_topics(self) -> None:
        """Let alarms and Auto Scaling groups of this account publish to encrypted topics."""
        publish = ["kms:Decrypt", "kms:GenerateDataKey*"]
        self._allow(
            iam.ServicePrincipal("cloudwatch.amazonaws.com"),
            publish,
            {"StringEquals": {"aws:SourceAccount": Stack.of(self).account}},
        )
        self._allow_auto_scaling(publish)

    def allow_lustre_links(self) -> None:
        """Let FSx read and write what this key encrypts, for file systems linked to a bucket."""
        # Each file system gets a service-linked role of its own, named after it:
        # docs.aws.amazon.com/fsx/latest/LustreGuide/s3-server-side-encryption-support.html
        stack = Stack.of(self)
        role = (
            f"arn:{stack.partition}:iam::{stack.account}:role/aws-service-role/"
            "s3.data-source.lustre.fsx.amazonaws.com/AWSServiceRoleForFSxS3Access_fs-*"
        )
        account = {"StringEquals": {"kms:CallerAccount": stack.account}}
        self._allow(iam.AnyPrincipal(), _USE, {"ArnLike": {"aws:PrincipalArn": role}, **account})

    def allow_auto_scaling_volumes(self) -> None:
        """Let Auto Scaling start instances whose volumes this key encrypts."""
        self._allow_auto_scaling(_USE)
        self._allow_auto_scaling(
            ["kms:CreateGrant"], {"Bool": {"kms:GrantIsForAWSResource": "true"}}
        )

    def _allow_auto_scaling(
        self, actions: list[str], conditions: dict[str, dict[str, str]] | None = None
    ) -> None:
        # The role is named in a condition and not as the principal: KMS refuses a policy whose
        # principal does not exist, and Auto Scaling makes this role with an account's first group.
        stack = Stack.of(self)
        role = (
            f"arn:{stack.partition}:iam::{stack.account}:role/aws-service-role/"
            "autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"
        )
        only = {"ArnEquals": {"aws:PrincipalArn": role}}
        account = {"StringEquals": {"kms:CallerAccount": stack.account}}
        self._allow(iam.AnyPrincipal(), actions, only | account | (conditions or {}))

    def _allow(
        self, principal: iam.IPrincipal, actions: list[str], conditions: dict[str, dict[str, str]]
    ) -> None:
        self.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[principal], actions=actions, resources=["*"], conditions=conditions
            )
        )
