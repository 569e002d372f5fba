"""A security group that nothing leaves or enters until a rule says so."""

from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from constructs_lib.site import Site


class ClosedGroup(ec2.SecurityGroup):
    """Security group without the rule that lets everything out.

    Args:
        vpc: Where it belongs.
        description: What it lets through.
    """

    def __init__(
        self, scope: Construct, construct_id: str, *, vpc: ec2.IVpc, description: str
    ) -> None:
        super().__init__(
            scope, construct_id, vpc=vpc, description=description, allow_all_outbound=False
        )
        # EC2 leaves its allow-all rule out only if the group itself has an egress rule. CDK takes
        # its placeholder away with the first rule to another group or a prefix list, although it
        # writes such rules as resources of their own; so the placeholder is put here for good.
        group = self.node.default_child
        assert isinstance(group, ec2.CfnSecurityGroup)  # noqa: S101  what an L2 group is made of
        group.add_property_override(
            "SecurityGroupEgress",
            [
                {
                    "CidrIp": "255.255.255.255/32",
                    "Description": "matches nothing",
                    "IpProtocol": "icmp",
                    "FromPort": 252,
                    "ToPort": 86,
                }
            ],
        )

    def allow_to_aws(self, site: Site) -> None:
        """Let HTTPS out to the interface endpoints and to S3's gateway endpoint."""
        https = ec2.Port.tcp(443)
        self.add_egress_rule(site.endpoints, https, "interface endpoints")
        s3 = ec2.Peer.prefix_list(site.s3_prefix_list)
        self.add_egress_rule(s3, https, "S3 gateway endpoint")
