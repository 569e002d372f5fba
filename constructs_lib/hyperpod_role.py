"""What the nodes of a cluster may do: the calls that HyperPod and their scripts make, no others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aws_cdk import ArnFormat, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from constructs_lib.acknowledge import acknowledge_wildcards
from constructs_lib.hyperpod_cluster import log_group_prefix
from constructs_lib.hyperpod_groups import Place

# AmazonSageMakerClusterInstanceRolePolicy, and what HyperPod's documentation adds to it for a VPC:
# docs.aws.amazon.com/sagemaker/latest/dg/sagemaker-hyperpod-prerequisites-iam.html.
SESSION = [
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
]
LOOK = [
    "ec2:DescribeDhcpOptions",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
    "ec2:DetachNetworkInterface",
]
INTERFACES = [
    "ec2:CreateNetworkInterface",
    "ec2:CreateNetworkInterfacePermission",
    "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission",
]
# Of the VPC CNI, which gives pods addresses of the subnet, and of pulling their images.
POD_INTERFACES = [
    "ec2:AssignPrivateIpAddresses",
    "ec2:AttachNetworkInterface",
    "ec2:ModifyNetworkInterfaceAttribute",
    "ec2:UnassignPrivateIpAddresses",
]
POD_LOOK = [
    "ec2:DescribeInstanceTypes",
    "ec2:DescribeInstances",
    "ec2:DescribeTags",
    "ecr:BatchCheckLayerAvailability",
    "ecr:BatchGetImage",
    "ecr:GetAuthorizationToken",
    "ecr:GetDownloadUrlForLayer",
]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a cluster's scripts touch.

    Args:
        scripts_bucket: Lifecycle scripts and code.
        scripts_key: Encrypts it.
        parameter: What the scripts are told.
        log_group: Where scripts and runs write.
        metric_namespace: The only namespace of a run's metrics.
        volume_key: Encrypts the nodes' disks.
        accounting_secret: Login of Slurm's database, if it is not on the controller.
    """

    scripts_bucket: s3.IBucket
    scripts_key: kms.IKey
    parameter: ssm.IStringParameter
    log_group: logs.ILogGroup
    metric_namespace: str
    volume_key: kms.IKey
    accounting_secret: str | None = None


class ClusterRole(iam.Role):
    """Execution role of the nodes of a cluster.

    Its policies are part of the role, so that a cluster which refers to the role has them.

    Args:
        cluster: Name of the cluster.
        needs: What its scripts touch.
        place: Where its network interfaces are.
        eks_arn: The EKS cluster that its nodes join; left out, they have Slurm.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cluster: str,
        needs: Needs,
        place: Place,
        eks_arn: str | None = None,
    ) -> None:
        stack = Stack.of(scope)
        network = _network(stack, place, pods=eks_arn is not None)
        group = _log_group(stack, cluster)
        bucket = needs.scripts_bucket
        statements = [
            *network.statements,
            *_scripts(needs),
            _allow(["logs:CreateLogGroup"], group),
            _allow(
                ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
                f"{group}:log-stream:*",
            ),
            _metrics(needs.metric_namespace, "/aws/sagemaker/Clusters"),
            _allow(SESSION, "*"),
            *_disks(stack, needs.volume_key),
        ]
        if eks_arn:
            statements += [_allow(["eks-auth:AssumeRoleForPodIdentity"], eks_arn)]
        if needs.accounting_secret:
            statements += [_allow(["secretsmanager:GetSecretValue"], needs.accounting_secret)]
        super().__init__(
            scope,
            construct_id,
            assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com"),
            inline_policies={"Node": iam.PolicyDocument(statements=statements)},
        )
        acknowledge_wildcards(
            self,
            {
                **network.reasons,
                "*": "descriptions, sessions and metrics cannot be limited to resources; the "
                "metrics' namespaces are, by a condition",
                bucket.arn_for_objects(
                    "*"
                ): "every version of scripts and code is in this bucket, nothing else",
                group: "the log group's name ends in an id that the cluster gets at its creation",
                f"{group}:log-stream:*": "streams are named after instances",
            },
        )


@dataclass(frozen=True)
class _Network:
    statements: Sequence[iam.PolicyStatement]
    reasons: Mapping[str, str]


def _network(stack: Stack, place: Place, *, pods: bool) -> _Network:
    interfaces = stack.format_arn(service="ec2", resource="network-interface", resource_name="*")
    instances = stack.format_arn(service="ec2", resource="instance", resource_name="*")
    inside = [
        stack.format_arn(service="ec2", resource="subnet", resource_name=each.subnet_id)
        for each in _subnets(place)
    ]
    group = stack.format_arn(
        service="ec2",
        resource="security-group",
        resource_name=place.security_group.security_group_id,
    )
    reasons = {interfaces: "interfaces come and go with nodes; subnets and the group are ours"}
    statements = [
        _allow(INTERFACES, interfaces, group, *inside),
        _allow(["ec2:CreateTags"], interfaces),
        _allow([*LOOK, *(POD_LOOK if pods else [])], "*"),
    ]
    if pods:
        statements.append(_allow(POD_INTERFACES, interfaces, instances, group, *inside))
        reasons[instances] = "the VPC CNI gives interfaces to nodes, which come and go"
    return _Network(statements, reasons)


def _subnets(place: Place) -> list[ec2.ISubnet]:
    return list(place.subnets.values())


def _scripts(needs: Needs) -> list[iam.PolicyStatement]:
    bucket = needs.scripts_bucket
    return [
        _allow(["s3:ListBucket"], bucket.bucket_arn),
        _allow(["s3:GetObject"], bucket.arn_for_objects("*")),
        _allow(["kms:Decrypt"], needs.scripts_key.key_arn),
        _allow(["ssm:GetParameter"], needs.parameter.parameter_arn),
        _allow(["logs:CreateLogStream", "logs:PutLogEvents"], needs.log_group.log_group_arn),
    ]


def _metrics(*namespaces: str) -> iam.PolicyStatement:
    return iam.PolicyStatement(
        actions=["cloudwatch:PutMetricData"],
        resources=["*"],
        conditions={"StringEquals": {"cloudwatch:namespace": list(namespaces)}},
    )


def _disks(stack: Stack, key: kms.IKey) -> list[iam.PolicyStatement]:
    """Return what HyperPod needs to give disks under our key to instances."""
    via = {"StringEquals": {"kms:ViaService": f"sagemaker.{stack.region}.amazonaws.com"}}
    return [
        _allow(["kms:DescribeKey"], key.key_arn),
        iam.PolicyStatement(
            actions=["kms:CreateGrant"],
            resources=[key.key_arn],
            conditions={**via, "Bool": {"kms:GrantIsForAWSResource": "true"}},
        ),
    ]


def _log_group(stack: Stack, cluster: str) -> str:
    return stack.format_arn(
        service="logs",
        resource="log-group",
        resource_name=f"{log_group_prefix(cluster)}/*",
        arn_format=ArnFormat.COLON_RESOURCE_NAME,
    )


def _allow(actions: Sequence[str], *resources: str) -> iam.PolicyStatement:
    return iam.PolicyStatement(actions=list(actions), resources=list(resources))
