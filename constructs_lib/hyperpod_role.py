"""What the nodes of a cluster may do: the calls that their scripts and HyperPod make."""

from collections.abc import Sequence

from aws_cdk import Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from constructs import Construct

from constructs_lib.acknowledge import acknowledge_wildcards


class ClusterRole(iam.Role):
    """Execution role of the nodes of a cluster.

    Args:
        log_group: Where the scripts and runs write.
        metric_namespace: The only namespace of our metrics.
        statements: What else its scripts do.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        log_group: logs.ILogGroup,
        metric_namespace: str,
        statements: Sequence[iam.PolicyStatement] = (),
    ) -> None:
        every = [
            _allow(["logs:CreateLogStream", "logs:PutLogEvents"], log_group.log_group_arn),
            iam.PolicyStatement(
                actions=["cloudwatch:PutMetricData"],
                resources=["*"],
                conditions={"StringEquals": {"cloudwatch:namespace": metric_namespace}},
            ),
            *statements,
        ]
        super().__init__(
            scope,
            construct_id,
            assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com"),
            inline_policies={"Node": iam.PolicyDocument(statements=every)},
        )
        acknowledge_wildcards(
            self,
            {"*": "PutMetricData cannot be limited to resources; its namespace is, by a condition"},
        )
        self.stack_of = Stack.of(self)


def _allow(actions: Sequence[str], *resources: str) -> iam.PolicyStatement:
    return iam.PolicyStatement(actions=list(actions), resources=list(resources))
