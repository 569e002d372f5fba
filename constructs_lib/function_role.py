"""What a function that serves a model may do: the calls that its code makes, and no others."""

from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from constructs_lib.acknowledge import acknowledge_wildcards
from constructs_lib.weights import Weights


class FunctionRole(iam.Role):
    """Role of one function. Its figures travel in its log, so it needs no right for metrics.

    Args:
        weights: What it serves.
        log_group: The only group that it writes to.
        dead_letters: Where Lambda puts, with this role, what failed asynchronously.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        weights: Weights,
        log_group: logs.ILogGroup,
        dead_letters: sqs.IQueue,
    ) -> None:
        statements = [
            *weights.read_statements(),
            iam.PolicyStatement(
                actions=["logs:CreateLogStream", "logs:PutLogEvents"],
                resources=[log_group.log_group_arn],
            ),
            iam.PolicyStatement(actions=["sqs:SendMessage"], resources=[dead_letters.queue_arn]),
        ]
        super().__init__(
            scope,
            construct_id,
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
            inline_policies={"Function": iam.PolicyDocument(statements=statements)},
        )
        acknowledge_wildcards(
            self,
            {weights.object_arns: "every version of the model is below this prefix"},
        )
