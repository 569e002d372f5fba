"""The bucket of a cluster's lifecycle scripts, into which `cdk deploy` itself publishes them."""

from aws_cdk import Acknowledgment, Stack, Validations
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from constructs_lib.data_bucket import DataBucket

_PUBLISH = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
_LOOK = ["s3:ListBucket", "s3:GetBucketLocation", "s3:GetEncryptionConfiguration"]


class LifecycleBucket(DataBucket):
    """Data bucket with a name that HyperPod takes, open to the roles of the CDK's bootstrap.

    HyperPod reads lifecycle scripts only from buckets that are called sagemaker-*, each script as
    an object of its own. The stack of a cluster names this bucket in its synthesizer, so its
    scripts are file assets like any other: the CLI publishes them before it deploys the stack.

    Args:
        name: Physical name; see `lifecycle_bucket_name`.
        key: Encrypts its objects.
        access_logs: Takes its access logs.
        retained: Keep the bucket when its stack is destroyed.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        name: str,
        key: kms.Key,
        access_logs: s3.IBucket,
        retained: bool,
    ) -> None:
        super().__init__(
            scope, construct_id, name=name, key=key, access_logs=access_logs, retained=retained
        )
        Validations.of(self.node.default_child or self).acknowledge(
            Acknowledgment(
                id="Isomorph::FixedNames",
                reason="HyperPod reads lifecycle scripts from buckets named sagemaker-* alone, and "
                "synthesis writes the name into the asset manifest; it says account and region",
            )
        )
        look = [*_PUBLISH, *_LOOK]
        self._open_to("file-publishing", look, name, key, ["kms:Decrypt", "kms:GenerateDataKey*"])
        self._open_to("deploy", ["s3:GetObject"], name, key, ["kms:Decrypt"])

    def _open_to(
        self, role: str, actions: list[str], name: str, key: kms.Key, key_actions: list[str]
    ) -> None:
        """Let a role of the bootstrap use the bucket, and the key for this bucket alone."""
        stack = Stack.of(self)
        qualifier = stack.synthesizer.bootstrap_qualifier
        arn = (
            f"arn:{stack.partition}:iam::{stack.account}:role/"
            f"cdk-{qualifier}-{role}-role-{stack.account}-{stack.region}"
        )
        # In a condition and not as the principal: S3 and KMS refuse a principal that is not there.
        only = {"ArnEquals": {"aws:PrincipalArn": arn}}
        self.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.AnyPrincipal()],
                actions=actions,
                resources=[self.bucket_arn, self.arn_for_objects("*")],
                conditions=only,
            )
        )
        # S3 tells KMS the bucket, or the object where the bucket key is off. By its name: the
        # bucket refers to its key already.
        bucket = f"arn:{stack.partition}:s3:::{name}"
        context = {"kms:EncryptionContext:aws:s3:arn": [bucket, f"{bucket}/*"]}
        key.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.AnyPrincipal()],
                actions=key_actions,
                resources=["*"],
                conditions={
                    **only,
                    "StringEquals": {"kms:CallerAccount": stack.account},
                    "StringLike": context,
                },
            )
        )


def lifecycle_bucket_name(environment: str, account: str, region: str) -> str:
    """Return the name of an environment's lifecycle bucket: at most 58 characters."""
    return f"sagemaker-{environment}-{account}-{region}"
