"""Security groups of HyperPod clusters, whose nodes talk over EFA."""

from collections.abc import Iterator
from typing import Any

from constructs_lib.rules.rule import Breach, Rule, Template, as_list, resources

_INSIDE = {
    "SecurityGroupIngress": ("AWS::EC2::SecurityGroupIngress", "SourceSecurityGroupId"),
    "SecurityGroupEgress": ("AWS::EC2::SecurityGroupEgress", "DestinationSecurityGroupId"),
}


def _check(template: Template) -> Iterator[Breach]:
    groups = dict(resources(template, "AWS::EC2::SecurityGroup"))
    for logical_id, cluster in resources(template, "AWS::SageMaker::Cluster"):
        for location, network in _networks(cluster):
            for attached in as_list(network.get("SecurityGroupIds")):
                name = _target(attached)
                if name not in groups or not _talks_to_itself(template, name, groups[name]):
                    yield Breach(logical_id, f"{location}.SecurityGroupIds")


def _networks(cluster: Template) -> Iterator[tuple[str, Template]]:
    yield "Properties.VpcConfig", cluster.get("VpcConfig", {})
    for number, group in enumerate(cluster.get("InstanceGroups", [])):
        place = f"Properties.InstanceGroups.{number}.OverrideVpcConfig"
        yield place, group.get("OverrideVpcConfig", {})


def _talks_to_itself(template: Template, name: str, group: Template) -> bool:
    for inside, (kind, other) in _INSIDE.items():
        rules = [*as_list(group.get(inside))]
        rules += [rule for _, rule in resources(template, kind) if _target(rule["GroupId"]) == name]
        if not any(
            str(rule.get("IpProtocol")) == "-1" and _target(rule.get(other)) == name
            for rule in rules
        ):
            return False
    return True


def _target(reference: Any) -> str:
    """Return the logical id that a reference to a security group is to, if it is one."""
    match reference:
        case {"Ref": str(name)} | {"Fn::GetAtt": [str(name), "GroupId"]}:
            return name
        case _:
            return ""


RULE = Rule(
    id="EfaGroups",
    says="EFA passes only between nodes whose security groups allow all traffic to AND from "
    "themselves; with one of the two missing, runs hang at the first collective operation.",
    fix="use ClusterSecurityGroup, on every group of nodes",
    check=_check,
)
