"""Interface endpoints for one stack: what its parts call, and no other stack's do."""

from collections.abc import Sequence

from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from constructs_lib.site import Site


class PrivateEndpoints(Construct):
    """Endpoints in the private subnets, behind the security group of the foundation's.

    One service may have one endpoint with private names in a VPC: a second stack that calls the
    same service needs it in the foundation (ENDPOINTS of private_vpc.py).

    Args:
        site: The VPC, and the group of its endpoints.
        services: Such as `secretsmanager`.
    """

    def __init__(
        self, scope: Construct, construct_id: str, *, site: Site, services: Sequence[str]
    ) -> None:
        super().__init__(scope, construct_id)
        for name in services:
            ec2.InterfaceVpcEndpoint(
                self,
                name,
                vpc=site.vpc,
                service=ec2.InterfaceVpcEndpointAwsService(name),
                subnets=ec2.SubnetSelection(subnets=site.vpc.private_subnets),
                security_groups=[site.endpoints],
                open=False,
                private_dns_enabled=True,
            )
