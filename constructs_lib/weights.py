"""The weights that a fleet serves: a pointer that a command moves, and leave to read them."""

from typing import Any

from aws_cdk import CfnCondition, CfnParameter, Fn, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

NO_WEIGHTS = "none"


class Weights(Construct):
    """Reads, at each deployment, where the weights are; until there are any it is `none`.

    Args:
        pointer: Name of the SSM parameter that holds s3://bucket/prefix/#sha256=DIGEST.
        bucket: Where they are.
        key: What encrypts the bucket.
        prefix: The part of the bucket that may be read.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        pointer: str,
        bucket: s3.IBucket,
        key: kms.IKey,
        prefix: str,
    ) -> None:
        super().__init__(scope, construct_id)
        self.object_arns, self._key = bucket.arn_for_objects(f"{prefix}/*"), key
        parameter = CfnParameter(
            self,
            "Pointer",
            type="AWS::SSM::Parameter::Value<String>",
            default=pointer,
            description="SSM parameter that says where the weights are, or `none`",
        )
        self.value = parameter.value_as_string
        self.present = CfnCondition(
            self,
            "Present",
            expression=Fn.condition_not(Fn.condition_equals(self.value, NO_WEIGHTS)),
        )

    def if_present(self, there: Any, missing: Any) -> Any:
        """Return `there` once weights have been pushed, and `missing` before that."""
        return Fn.condition_if(self.present.logical_id, there, missing)

    def read_statements(self) -> list[iam.PolicyStatement]:
        """Return what a reader needs: the objects, and the key when S3 asks for it."""
        s3_only = {"StringEquals": {"kms:ViaService": f"s3.{Stack.of(self).region}.amazonaws.com"}}
        return [
            iam.PolicyStatement(actions=["s3:GetObject"], resources=[self.object_arns]),
            iam.PolicyStatement(
                actions=["kms:Decrypt"], resources=[self._key.key_arn], conditions=s3_only
            ),
        ]
