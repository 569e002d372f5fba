"""Types of EC2's network that the control plane lacks."""

from collections.abc import Callable, Iterable
from typing import Any

from ministack.services.cloudformation import provisioners

from local_aws.resources.table import Aws, Made, Properties, Resource, Type

_VPC = frozenset({"CidrBlock", "EnableDnsHostnames", "EnableDnsSupport", "InstanceTenancy", "Tags"})
_NAT_GATEWAY = ("SubnetId", "AllocationId", "ConnectivityType")
_FLOW_LOG = (
    "ResourceType",
    "TrafficType",
    "LogDestinationType",
    "LogDestination",
    "LogGroupName",
    "DeliverLogsPermissionArn",
    "LogFormat",
    "MaxAggregationInterval",
)


def _tags(resource_type: str, properties: Properties) -> dict[str, Any]:
    tags = list(properties.get("Tags", []))
    return {"TagSpecifications": [{"ResourceType": resource_type, "Tags": tags}]} if tags else {}


def _picked(properties: Properties, names: Iterable[str]) -> dict[str, Any]:
    return {name: properties[name] for name in names if name in properties}


def _allocate_address(aws: Aws, resource: Resource) -> Made:
    address = aws.client("ec2").allocate_address(
        Domain="vpc", **_tags("elastic-ip", resource.properties)
    )
    return Made(
        address["PublicIp"],
        {"AllocationId": address["AllocationId"], "PublicIp": address["PublicIp"]},
    )


def _release_address(aws: Aws, public_ip: str, _: Properties) -> None:
    ec2 = aws.client("ec2")
    for address in ec2.describe_addresses(PublicIps=[public_ip])["Addresses"]:
        ec2.release_address(AllocationId=address["AllocationId"])


def _create_nat_gateway(aws: Aws, resource: Resource) -> Made:
    gateway = aws.client("ec2").create_nat_gateway(
        **_picked(resource.properties, _NAT_GATEWAY),
        **_tags("natgateway", resource.properties),
    )["NatGateway"]
    return Made(gateway["NatGatewayId"], {"NatGatewayId": gateway["NatGatewayId"]})


def _delete_nat_gateway(aws: Aws, gateway: str, _: Properties) -> None:
    aws.client("ec2").delete_nat_gateway(NatGatewayId=gateway)


def _create_flow_log(aws: Aws, resource: Resource) -> Made:
    given = _picked(resource.properties, _FLOW_LOG)
    if "MaxAggregationInterval" in given:
        given["MaxAggregationInterval"] = int(given["MaxAggregationInterval"])
    [log] = aws.client("ec2").create_flow_logs(
        ResourceIds=[resource.properties["ResourceId"]],
        **given,
        **_tags("vpc-flow-log", resource.properties),
    )["FlowLogIds"]
    return Made(log, {"Id": log})


def _delete_flow_log(aws: Aws, log: str, _: Properties) -> None:
    aws.client("ec2").delete_flow_logs(FlowLogIds=[log])


def _rule(properties: Properties, peer: str) -> dict[str, Any]:
    note = {"Description": properties["Description"]} if properties.get("Description") else {}
    permission: dict[str, Any] = {"IpProtocol": str(properties["IpProtocol"])}
    for port in ("FromPort", "ToPort"):
        if port in properties:
            permission[port] = int(properties[port])
    if "CidrIp" in properties:
        permission["IpRanges"] = [{"CidrIp": properties["CidrIp"], **note}]
    if "CidrIpv6" in properties:
        permission["Ipv6Ranges"] = [{"CidrIpv6": properties["CidrIpv6"], **note}]
    if f"{peer}SecurityGroupId" in properties:
        group = properties[f"{peer}SecurityGroupId"]
        permission["UserIdGroupPairs"] = [{"GroupId": group, **note}]
    if f"{peer}PrefixListId" in properties:
        prefix_list = properties[f"{peer}PrefixListId"]
        permission["PrefixListIds"] = [{"PrefixListId": prefix_list, **note}]
    return {"GroupId": properties["GroupId"], "IpPermissions": [permission]}


def _rule_type(direction: str, peer: str) -> Type:
    def create(aws: Aws, resource: Resource) -> Made:
        authorize: Callable[..., Any] = getattr(
            aws.client("ec2"), f"authorize_security_group_{direction}"
        )
        [rule] = authorize(**_rule(resource.properties, peer))["SecurityGroupRules"]
        return Made(rule["SecurityGroupRuleId"], {"Id": rule["SecurityGroupRuleId"]})

    def delete(aws: Aws, _: str, properties: Properties) -> None:
        revoke: Callable[..., Any] = getattr(
            aws.client("ec2"), f"revoke_security_group_{direction}"
        )
        revoke(**_rule(properties, peer))

    known = {"GroupId", "IpProtocol", "FromPort", "ToPort", "CidrIp", "CidrIpv6", "Description"}
    known |= {f"{peer}SecurityGroupId", f"{peer}PrefixListId"}
    name = f"AWS::EC2::SecurityGroup{direction.title()}"
    return Type(name, frozenset(known), create, delete)


def _with_range(made: tuple[str, dict[str, str]], properties: Properties) -> Made:
    """Add the attribute that the control plane leaves out."""
    vpc, attributes = made
    return Made(vpc, {**attributes, "CidrBlock": properties["CidrBlock"]})


def _create_vpc(_: Aws, resource: Resource) -> Made:
    properties = resource.properties
    made = provisioners._ec2_vpc_create(resource.logical_id, properties, resource.stack)
    return _with_range(made, properties)


def _update_vpc(_: Aws, vpc: str, resource: Resource) -> Made:
    made = provisioners._ec2_vpc_update(
        vpc, resource.before, resource.properties, resource.stack, resource.logical_id
    )
    return _with_range(made, resource.properties)


def _delete_vpc(_: Aws, vpc: str, properties: Properties) -> None:
    provisioners._ec2_vpc_delete(vpc, properties)


NETWORK = (
    Type("AWS::EC2::VPC", _VPC, _create_vpc, _delete_vpc, _update_vpc),
    Type("AWS::EC2::EIP", frozenset({"Domain", "Tags"}), _allocate_address, _release_address),
    Type(
        "AWS::EC2::NatGateway",
        frozenset({*_NAT_GATEWAY, "Tags"}),
        _create_nat_gateway,
        _delete_nat_gateway,
    ),
    Type(
        "AWS::EC2::FlowLog",
        frozenset({*_FLOW_LOG, "ResourceId", "Tags"}),
        _create_flow_log,
        _delete_flow_log,
    ),
    _rule_type("ingress", "Source"),
    _rule_type("egress", "Destination"),
)
