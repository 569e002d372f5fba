"""The security group of a cluster's nodes: EFA talks to itself, in and out, or not at all."""

from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from constructs_lib.closed_group import ClosedGroup
from constructs_lib.site import Site


class ClusterSecurityGroup(ClosedGroup):
    """Security group of all nodes of a cluster.

    EFA bypasses the TCP/IP stack, so AWS lets it through only where a group allows ALL traffic to
    and from itself. Both rules, on every group that is attached:
    docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html, step 1.

    Args:
        site: Network, and where AWS's services are reached.
    """

    def __init__(self, scope: Construct, construct_id: str, *, site: Site) -> None:
        super().__init__(scope, construct_id, vpc=site.vpc, description="Nodes of a cluster: EFA")
        self._cidr = site.cidr
        self.add_ingress_rule(self, ec2.Port.all_traffic(), "EFA and orchestrator, from each other")
        self.add_egress_rule(self, ec2.Port.all_traffic(), "EFA and orchestrator, to each other")
        self.add_egress_rule(site.endpoints, ec2.Port.tcp(443), "services of AWS, by endpoints")
        self.add_egress_rule(
            ec2.Peer.prefix_list(site.s3_prefix_list), ec2.Port.tcp(443), "S3, by its gateway"
        )

    def allow_database(self, port: int) -> None:
        """Let nodes reach a database of the VPC."""
        # Not add_egress_rule: rules to addresses are the group's own property, which is closed.
        ec2.CfnSecurityGroupEgress(
            self,
            "Database",
            group_id=self.security_group_id,
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            cidr_ip=self._cidr,
            description="accounting database in the VPC",
        )
