"""The internal load balancer in front of a fleet."""

from typing import Protocol

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_elasticloadbalancingv2 as elb
from constructs import Construct, IConstruct

from constructs_lib.closed_group import ClosedGroup
from constructs_lib.data_bucket import AccessLogBucket
from constructs_lib.site import Site


class Entrance(Protocol):
    """What a fleet knows of the load balancer in front of it: its own, or a part of one."""

    @property
    def balancer(self) -> elb.ApplicationLoadBalancer:
        """The load balancer."""

    @property
    def targets(self) -> elb.ApplicationTargetGroup:
        """The target group that is this fleet's."""

    @property
    def attachment(self) -> IConstruct:
        """What makes the target group a part of the load balancer."""

    @property
    def url(self) -> str:
        """Where callers reach the load balancer."""

    def request_count(self, period: Duration) -> cloudwatch.Metric:
        """Return the number of requests to this fleet."""

    def allow_to(self, nodes: ec2.ISecurityGroup, port: int) -> None:
        """Open the way from the load balancer to the nodes, and no other."""


def node_targets(
    scope: Construct,
    construct_id: str,
    *,
    vpc: ec2.IVpc,
    port: int,
    deadline_seconds: int,
    session: Duration | None = None,
) -> elb.ApplicationTargetGroup:
    """Return a target group of nodes that serve a model.

    Requests go to the node with the fewest outstanding: they differ a hundredfold in length, so
    taking turns would pile long ones up. A load balancer refuses slow start together with that;
    a node does not need it, since it is healthy only when its model is loaded.

    Args:
        scope: Becomes a part of it.
        construct_id: Its id there.
        vpc: Where the nodes are.
        port: Of the servers.
        deadline_seconds: The longest that a request may take.
        session: How long a caller with cookies stays with one node. Left out, not at all.
    """
    return elb.ApplicationTargetGroup(
        scope,
        construct_id,
        vpc=vpc,
        port=port,
        protocol=elb.ApplicationProtocol.HTTP,
        target_type=elb.TargetType.INSTANCE,
        load_balancing_algorithm_type=(
            elb.TargetGroupLoadBalancingAlgorithmType.LEAST_OUTSTANDING_REQUESTS
        ),
        deregistration_delay=Duration.seconds(deadline_seconds + 5),
        stickiness_cookie_duration=session,
        health_check=elb.HealthCheck(
            path="/health",
            interval=Duration.seconds(10),
            timeout=Duration.seconds(5),
            healthy_threshold_count=2,
            unhealthy_threshold_count=3,
        ),
    )


class FrontDoor(Construct):
    """Internal load balancer that takes calls from inside the VPC and sends them to nodes.

    Args:
        site: Where it stands.
        name: Part of the prefix of its access logs.
        node_port: Port of the servers.
        certificate_arn: Certificate for HTTPS. Left out, it speaks HTTP.
        deadline_seconds: The longest that a request may take.
        deletion_protection: Refuse to be deleted.
        otherwise: What becomes of requests that no rule takes. Left out, they go to a target group
            of its own, and it is the entrance of one fleet.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        site: Site,
        name: str,
        node_port: int,
        certificate_arn: str | None,
        deadline_seconds: int,
        deletion_protection: bool,
        otherwise: elb.ListenerAction | None = None,
    ) -> None:
        super().__init__(scope, construct_id)
        port = 443 if certificate_arn else 80
        self.security_group = ClosedGroup(
            self,
            "SecurityGroup",
            vpc=site.vpc,
            description="Load balancer: calls from inside the VPC",
        )
        self.security_group.add_ingress_rule(
            ec2.Peer.ipv4(site.cidr), ec2.Port.tcp(port), "calls from inside the VPC"
        )
        self.balancer = elb.ApplicationLoadBalancer(
            self,
            "Resource",
            vpc=site.vpc,
            vpc_subnets=ec2.SubnetSelection(subnets=site.vpc.private_subnets),
            internet_facing=False,
            security_group=self.security_group,
            drop_invalid_header_fields=True,
            deletion_protection=deletion_protection,
            idle_timeout=Duration.seconds(deadline_seconds + 5),  # the server answers first
        )
        self.balancer.set_attribute("access_logs.s3.enabled", "true")
        self.balancer.set_attribute("access_logs.s3.bucket", site.access_logs.bucket_name)
        self.balancer.set_attribute(
            "access_logs.s3.prefix", AccessLogBucket.load_balancer_prefix(name)
        )
        if otherwise is None:
            self.targets = node_targets(
                self, "Targets", vpc=site.vpc, port=node_port, deadline_seconds=deadline_seconds
            )
            otherwise = elb.ListenerAction.forward([self.targets])
        self.listener = self.balancer.add_listener(
            "Listener",
            port=port,
            protocol=elb.ApplicationProtocol.HTTPS
            if certificate_arn
            else elb.ApplicationProtocol.HTTP,
            certificates=[elb.ListenerCertificate.from_arn(certificate_arn)]
            if certificate_arn
            else None,
            ssl_policy=elb.SslPolicy.RECOMMENDED_TLS if certificate_arn else None,
            open=False,
            default_action=otherwise,
        )
        scheme = "https" if certificate_arn else "http"
        self.url = f"{scheme}://{self.balancer.load_balancer_dns_name}"

    @property
    def attachment(self) -> IConstruct:
        """What makes the target group a part of the load balancer."""
        return self.listener

    def request_count(self, period: Duration) -> cloudwatch.Metric:
        """Return the number of requests to the load balancer."""
        return self.balancer.metrics.request_count(period=period)

    def allow_to(self, nodes: ec2.ISecurityGroup, port: int) -> None:
        """Open the way from the load balancer to the nodes, and no other."""
        self.security_group.add_egress_rule(nodes, ec2.Port.tcp(port), "requests to the nodes")
        nodes.add_ingress_rule(
            self.security_group, ec2.Port.tcp(port), "requests from the load balancer"
        )
