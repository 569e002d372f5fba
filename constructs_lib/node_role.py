"""What a node of a fleet may do: the calls that its code makes, and no others."""

from collections.abc import Sequence

from aws_cdk import ArnFormat, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from constructs import Construct

from constructs_lib.acknowledge import acknowledge_wildcards
from constructs_lib.weights import Weights

# Sessions need these; AmazonSSMManagedInstanceCore would add reading every parameter.
_SESSION = [
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
]


class NodeRole(iam.Role):
    """Role of the nodes of one fleet.

    Its policies are part of the role, not resources beside it: a node must not boot before it may
    do what booting takes.

    Args:
        object_arns: Assets that it fetches.
        weights: What it serves.
        metric_namespace: The only namespace that it publishes metrics to.
        log_group: The only group that it writes to.
        statements: What else its code does.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        object_arns: Sequence[str],
        weights: Weights,
        metric_namespace: str,
        log_group: logs.ILogGroup,
        statements: Sequence[iam.PolicyStatement] = (),
    ) -> None:
        stack = Stack.of(scope)
        group = stack.format_arn(
            service="autoscaling",
            resource="autoScalingGroup",
            # CloudFormation names the group STACK-LOGICALID-RANDOM. A reference to it would be
            # circular: the group waits for nodes that need this role.
            resource_name=f"*:autoScalingGroupName/{stack.stack_name}-*",
            arn_format=ArnFormat.COLON_RESOURCE_NAME,
        )
        every = [
            _allow(["s3:GetObject"], *object_arns),
            *weights.read_statements(),
            _allow(
                ["logs:CreateLogStream", "logs:PutLogEvents"],
                log_group.log_group_arn,
            ),
            iam.PolicyStatement(
                actions=["cloudwatch:PutMetricData"],
                resources=["*"],
                conditions={"StringEquals": {"cloudwatch:namespace": metric_namespace}},
            ),
            _allow(["cloudformation:SignalResource"], stack.stack_id),
            _allow(["autoscaling:CompleteLifecycleAction"], group),
            _allow(["autoscaling:DescribeAutoScalingInstances", *_SESSION], "*"),
            *statements,
        ]
        super().__init__(
            scope,
            construct_id,
            assumed_by=iam.ServicePrincipal("ec2.amazonaws.com"),
            inline_policies={"Node": iam.PolicyDocument(statements=every)},
        )
        acknowledge_wildcards(
            self,
            {
                weights.object_arns: "every version of the model is below this prefix",
                group: "the group's random name is not known before its nodes need this role",
                "*": "sessions, PutMetricData and DescribeAutoScalingInstances cannot be limited "
                "to resources; the metrics' namespace is fixed by a condition",
            },
        )


def _allow(actions: Sequence[str], *resources: str) -> iam.PolicyStatement:
    return iam.PolicyStatement(actions=list(actions), resources=list(resources))
