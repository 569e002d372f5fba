import ipaddress

import pytest

from tests.cdk_app import json_of, literal, new_stack, only, resources

from aws_cdk import aws_iam as iam  # isort: skip
from constructs_lib import DataKey, PrivateVpc  # isort: skip
from constructs_lib.private_vpc import ENDPOINTS  # isort: skip

ZONES = ["us-east-1a", "us-east-1b", "us-east-1d"]
POLICY = iam.PolicyStatement(
    principals=[iam.AnyPrincipal()], actions=["s3:GetObject"], resources=["arn:aws:s3:::ours/*"]
)


def vpc(nat_gateways: int) -> dict:
    stack = new_stack()
    key = DataKey(stack, "Key", description="logs", retained=False)
    PrivateVpc(
        stack,
        "Network",
        availability_zones=ZONES,
        nat_gateways=nat_gateways,
        s3_policy=[POLICY],
        log_key=key,
        retained=False,
    )
    return json_of(stack)


@pytest.fixture(scope="module")
def closed():
    return vpc(0)


@pytest.fixture(scope="module")
def with_nat():
    return vpc(1)


def subnets(template: dict) -> dict[tuple[str, str], str]:
    """Return the ranges by kind and zone."""
    found = {}
    for resource in resources(template, "AWS::EC2::Subnet").values():
        properties = resource["Properties"]
        tags = {tag["Key"]: tag["Value"] for tag in properties["Tags"]}
        place = tags["aws-cdk:subnet-name"], properties["AvailabilityZone"]
        found[place] = properties["CidrBlock"]
    return found


def test_there_is_a_private_and_an_isolated_subnet_in_each_named_zone(closed):
    assert set(subnets(closed)) == {
        (kind, zone) for kind in ("private", "isolated") for zone in ZONES
    }


def test_a_private_subnet_has_room_for_a_hundred_nodes_of_eighty_addresses(closed):
    # An EKS-orchestrated P5 node takes 81.
    sizes = {
        ipaddress.ip_network(block).num_addresses
        for (kind, _), block in subnets(closed).items()
        if kind == "private"
    }
    assert min(sizes) > 81 * 100


def test_without_nat_there_is_no_way_to_the_web(closed):
    for kind in ("InternetGateway", "NatGateway", "Route", "EIP"):
        assert resources(closed, f"AWS::EC2::{kind}") == {}


def test_nat_brings_public_subnets_and_moves_no_other(closed, with_nat):
    # A subnet whose range changes is replaced, with everything in it.
    before, after = subnets(closed), subnets(with_nat)
    assert {place: after[place] for place in before} == before
    assert {kind for kind, _ in set(after) - set(before)} == {"public"}


def test_nothing_in_a_public_subnet_gets_a_public_address_by_itself(with_nat):
    launch = [
        resource["Properties"].get("MapPublicIpOnLaunch", False)
        for resource in resources(with_nat, "AWS::EC2::Subnet").values()
    ]
    assert launch == [False] * 9


def test_there_is_an_interface_endpoint_for_everything_that_nodes_call(closed):
    names = {
        literal(resource["Properties"]["ServiceName"]).rpartition(".")[2]
        for resource in resources(closed, "AWS::EC2::VPCEndpoint").values()
        if resource["Properties"]["VpcEndpointType"] == "Interface"
    }
    assert names == set(ENDPOINTS)


def test_endpoints_take_https_from_inside_the_vpc_only(closed):
    group = only(closed, "AWS::EC2::SecurityGroup")
    [rule] = group["SecurityGroupIngress"]
    assert (rule["CidrIp"], rule["FromPort"], rule["ToPort"]) == ("10.0.0.0/16", 443, 443)
    assert resources(closed, "AWS::EC2::SecurityGroupIngress") == {}


def test_the_s3_endpoint_serves_every_subnet_under_the_given_policy(closed):
    [gateway] = [
        resource["Properties"]
        for resource in resources(closed, "AWS::EC2::VPCEndpoint").values()
        if resource["Properties"]["VpcEndpointType"] == "Gateway"
    ]
    [statement] = gateway["PolicyDocument"]["Statement"]
    assert statement["Resource"] == "arn:aws:s3:::ours/*"
    assert len(gateway["RouteTableIds"]) == 6


def test_flow_logs_record_all_traffic_in_an_encrypted_log_group(closed):
    log, group = only(closed, "AWS::EC2::FlowLog"), only(closed, "AWS::Logs::LogGroup")
    assert log["TrafficType"] == "ALL"
    assert log["LogGroupName"]["Ref"] in resources(closed, "AWS::Logs::LogGroup")
    assert "KmsKeyId" in group
    assert group["RetentionInDays"] == 90


def test_the_default_group_is_left_alone_and_no_custom_resource_is_made(closed):
    kinds = {resource["Type"] for resource in closed["Resources"].values()}
    assert not [kind for kind in kinds if kind.startswith("Custom::")]
    assert "AWS::Lambda::Function" not in kinds
