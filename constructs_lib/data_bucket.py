"""Buckets: one kind for data under a key of ours, one for access logs."""

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

_ALB_PREFIX = "load-balancers"


def _removal(retained: bool) -> RemovalPolicy:
    # Not auto_delete_objects: that is a Lambda-backed custom resource. Our command empties a
    # disposable bucket, versions and all, before it destroys the stack.
    return RemovalPolicy.RETAIN if retained else RemovalPolicy.DESTROY


class AccessLogBucket(s3.Bucket):
    """Takes the access logs of buckets and load balancers.

    Encrypted with SSE-S3, the only kind that both deliveries accept.

    Args:
        keep: How long logs are kept.
        retained: Keep the bucket when its stack is destroyed.
    """

    def __init__(
        self, scope: Construct, construct_id: str, *, keep: Duration, retained: bool
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            encryption=s3.BucketEncryption.S3_MANAGED,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            lifecycle_rules=[
                s3.LifecycleRule(
                    expiration=keep, abort_incomplete_multipart_upload_after=Duration.days(7)
                )
            ],
            removal_policy=_removal(retained),
        )
        balancers = Stack.of(self).format_arn(
            service="elasticloadbalancing", resource="loadbalancer", resource_name="*"
        )
        self.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal("logdelivery.elasticloadbalancing.amazonaws.com")],
                actions=["s3:PutObject"],
                resources=[self.arn_for_objects(f"{_ALB_PREFIX}/*")],
                conditions={"ArnLike": {"aws:SourceArn": balancers}},
            )
        )

    @staticmethod
    def load_balancer_prefix(name: str) -> str:
        """Return the only kind of prefix under which a load balancer may put its logs."""
        return f"{_ALB_PREFIX}/{name}"


class DataBucket(s3.Bucket):
    """Versioned bucket under a key of ours, reached over TLS only.

    Args:
        key: Encrypts its objects, with a bucket key so that KMS is asked seldom.
        access_logs: Takes its access logs.
        name: Physical name, where a service insists on one; left out, CloudFormation's.
        tiered: Move objects to S3 Intelligent-Tiering on day 0. Its archive tiers stay off: an
            archived weight file cannot be read for hours.
        retained: Keep the bucket when its stack is destroyed.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        key: kms.IKey,
        access_logs: s3.IBucket,
        name: str | None = None,
        tiered: bool = False,
        retained: bool,
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            bucket_name=name,
            encryption=s3.BucketEncryption.KMS,
            encryption_key=key,
            bucket_key_enabled=True,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            versioned=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            server_access_logs_bucket=access_logs,
            server_access_logs_prefix=f"buckets/{construct_id}/",
            lifecycle_rules=[
                s3.LifecycleRule(
                    noncurrent_version_expiration=Duration.days(30),
                    abort_incomplete_multipart_upload_after=Duration.days(7),
                    transitions=[
                        s3.Transition(
                            storage_class=s3.StorageClass.INTELLIGENT_TIERING,
                            transition_after=Duration.days(0),
                        )
                    ]
                    if tiered
                    else None,
                )
            ],
            removal_policy=_removal(retained),
        )
