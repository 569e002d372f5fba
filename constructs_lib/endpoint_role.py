"""What the machines of an endpoint may do: the calls of SageMaker for them, and of their code."""

from aws_cdk import ArnFormat, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

from constructs_lib.acknowledge import acknowledge_wildcards
from constructs_lib.weights import Weights

# What SageMaker does with the role so that a container has a network interface in our VPC.
# https://docs.aws.amazon.com/sagemaker/latest/dg/sagemaker-roles.html (CreateModel with VpcConfig)
_NETWORK = [
    "ec2:CreateNetworkInterface",
    "ec2:CreateNetworkInterfacePermission",
    "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission",
    "ec2:DescribeDhcpOptions",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
]
_IMAGE = [
    "ecr:BatchCheckLayerAvailability",
    "ecr:BatchGetImage",
    "ecr:GetDownloadUrlForLayer",
]
_LOGS = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams",
         "logs:PutLogEvents"]  # fmt: skip


class EndpointRole(iam.Role):
    """Role of one endpoint, which only SageMaker takes on, and only for this account.

    Args:
        archive_arn: The model.tar.gz.
        image_arn: Repository of the image.
        weights: What the container fetches.
        volume_key: Encrypts the machines' volumes.
        metric_namespace: The only namespace, besides SageMaker's own, that it publishes to.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        archive_arn: str,
        image_arn: str,
        weights: Weights,
        volume_key: kms.IKey,
        metric_namespace: str,
    ) -> None:
        stack = Stack.of(scope)
        logs_arn = stack.format_arn(
            service="logs",
            resource="log-group",
            resource_name="/aws/sagemaker/Endpoints/*",
            arn_format=ArnFormat.COLON_RESOURCE_NAME,
        )
        every = [
            _allow(["s3:GetObject"], archive_arn),
            *weights.read_statements(),
            _allow(_IMAGE, image_arn),
            _allow(["ecr:GetAuthorizationToken", *_NETWORK], "*"),
            _allow(_LOGS, logs_arn),
            iam.PolicyStatement(
                actions=["cloudwatch:PutMetricData"],
                resources=["*"],
                conditions={"StringEquals": {"cloudwatch:namespace": metric_namespace}},
            ),
            iam.PolicyStatement(
                actions=["kms:CreateGrant"],
                resources=[volume_key.key_arn],
                conditions={"Bool": {"kms:GrantIsForAWSResource": "true"}},
            ),
        ]
        super().__init__(
            scope,
            construct_id,
            assumed_by=iam.ServicePrincipal(
                "sagemaker.amazonaws.com",
                conditions={"StringEquals": {"aws:SourceAccount": stack.account}},
            ),
            inline_policies={"Endpoint": iam.PolicyDocument(statements=every)},
        )
        acknowledge_wildcards(
            self,
            {
                weights.object_arns: "every version of the model is below this prefix",
                logs_arn: "SageMaker names the endpoint's log group, and the endpoint, when made",
                "*": "network interfaces are made by SageMaker before they have names; a registry "
                "token and PutMetricData cannot be limited to resources, the namespace is fixed",
            },
        )


def _allow(actions: list[str], *resources: str) -> iam.PolicyStatement:
    return iam.PolicyStatement(actions=actions, resources=list(resources))
