"""What a run on EKS may do: its pods have a role of their own, not the nodes'."""

from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from constructs_lib.acknowledge import acknowledge_wildcards
from constructs_lib.training_eks import pods


class TrainingRunRole(iam.Role):
    """Role of the pods that train: it fetches its code, and publishes metrics.

    Data and checkpoints are files of the file system that the pods mount.

    Args:
        code_bucket: Where the code is.
        code_key: Encrypts it.
        metric_namespace: The only namespace of its metrics.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        code_bucket: s3.IBucket,
        code_key: kms.IKey,
        metric_namespace: str,
    ) -> None:
        objects = code_bucket.arn_for_objects("*")
        statements = [
            iam.PolicyStatement(actions=["s3:GetObject"], resources=[objects]),
            iam.PolicyStatement(actions=["kms:Decrypt"], resources=[code_key.key_arn]),
            iam.PolicyStatement(
                actions=["cloudwatch:PutMetricData"],
                resources=["*"],
                conditions={"StringEquals": {"cloudwatch:namespace": metric_namespace}},
            ),
        ]
        super().__init__(
            scope,
            construct_id,
            assumed_by=pods(),
            inline_policies={"Run": iam.PolicyDocument(statements=statements)},
        )
        acknowledge_wildcards(
            self,
            {
                objects: "every version of the code is in this bucket, and nothing secret",
                "*": "PutMetricData cannot be limited to resources; its namespace is fixed",
            },
        )
