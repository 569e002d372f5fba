"""A VPC whose nodes reach AWS through endpoints, and the web only if asked to."""

from collections.abc import Sequence

from aws_cdk import Acknowledgment, RemovalPolicy, Validations
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from constructs import Construct

from constructs_lib.bounds import PRIVATE_MASK
from constructs_lib.closed_group import ClosedGroup

# What a node of a fleet calls, and what a person needs to open a session on it. Each costs money
# in every zone, so none is here without a caller. Not ec2messages: agents since 3.3.40 use
# ssmmessages. Not kms: S3 and EBS call it themselves. Not sts: the role comes from the metadata.
ENDPOINTS = ("autoscaling", "cloudformation", "logs", "monitoring", "ssm", "ssmmessages")


class PrivateVpc(Construct):
    """Private and isolated subnets in each zone, endpoints, and flow logs.

    Args:
        availability_zones: One subnet of each kind in each.
        nat_gateways: With none there is no way to the web, and no public subnet.
        s3_policy: What the S3 gateway endpoint lets through.
        log_key: Encrypts the flow logs.
        retained: Keep the flow logs when the stack is destroyed.
    """

    CIDR = "10.0.0.0/16"

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        availability_zones: Sequence[str],
        nat_gateways: int,
        s3_policy: Sequence[iam.PolicyStatement],
        log_key: kms.IKey,
        retained: bool,
    ) -> None:
        super().__init__(scope, construct_id)
        self.vpc = ec2.Vpc(
            self,
            "Resource",
            ip_addresses=ec2.IpAddresses.cidr(self.CIDR),
            availability_zones=list(availability_zones),
            nat_gateways=nat_gateways,
            create_internet_gateway=nat_gateways > 0,
            subnet_configuration=_subnets(public=nat_gateways > 0),
            restrict_default_security_group=False,  # a custom resource; a rule forbids its use
            gateway_endpoints={
                "S3": ec2.GatewayVpcEndpointOptions(service=ec2.GatewayVpcEndpointAwsService.S3)
            },
        )
        for subnet in self.vpc.node.find_all():
            if isinstance(subnet, ec2.CfnSubnet):
                reason = "zones are named, so that synthesis asks the account nothing"
                Validations.of(subnet).acknowledge(
                    Acknowledgment(id="CloudFormation-Validate::W3010", reason=reason)
                )
        [s3_endpoint] = [
            child for child in self.vpc.node.children if isinstance(child, ec2.GatewayVpcEndpoint)
        ]
        for statement in s3_policy:
            s3_endpoint.add_to_policy(statement)
        self.endpoints = ClosedGroup(
            self,
            "Endpoints",
            vpc=self.vpc,
            description="Interface endpoints: HTTPS from inside the VPC",
        )
        self.endpoints.add_ingress_rule(
            ec2.Peer.ipv4(self.CIDR), ec2.Port.tcp(443), "HTTPS from inside the VPC"
        )
        for name in ENDPOINTS:
            self.vpc.add_interface_endpoint(
                name,
                service=ec2.InterfaceVpcEndpointAwsService(name),
                subnets=ec2.SubnetSelection(subnet_group_name="private"),
                security_groups=[self.endpoints],
                open=False,
            )
        self.flow_logs = logs.LogGroup(
            self,
            "FlowLogs",
            retention=logs.RetentionDays.THREE_MONTHS,
            encryption_key=log_key,
            removal_policy=RemovalPolicy.RETAIN if retained else RemovalPolicy.DESTROY,
        )
        self.vpc.add_flow_log(
            "FlowLog",
            destination=ec2.FlowLogDestination.to_cloud_watch_logs(self.flow_logs),
            traffic_type=ec2.FlowLogTrafficType.ALL,
        )


def _subnets(*, public: bool) -> list[ec2.SubnetConfiguration]:
    """Return the subnets of a zone. Public ones come last: adding them moves no other's range."""
    private = ec2.SubnetType.PRIVATE_WITH_EGRESS if public else ec2.SubnetType.PRIVATE_ISOLATED
    subnets = [
        ec2.SubnetConfiguration(name="private", subnet_type=private, cidr_mask=PRIVATE_MASK),
        ec2.SubnetConfiguration(
            name="isolated", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=22
        ),
    ]
    if public:
        subnets.append(
            ec2.SubnetConfiguration(
                name="public",
                subnet_type=ec2.SubnetType.PUBLIC,
                cidr_mask=24,
                map_public_ip_on_launch=False,
            )
        )
    return subnets
