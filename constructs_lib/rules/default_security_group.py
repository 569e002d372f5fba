"""Use of the VPC's default security group."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources, text

# What gets the default group when it names none, and where it names its groups.
_GROUPS = {
    "AWS::EC2::LaunchTemplate": ("LaunchTemplateData", "SecurityGroupIds"),
    "AWS::ElasticLoadBalancingV2::LoadBalancer": ("SecurityGroups",),
    "AWS::ElastiCache::ReplicationGroup": ("SecurityGroupIds",),
    "AWS::ElastiCache::ServerlessCache": ("SecurityGroupIds",),
    "AWS::EFS::MountTarget": ("SecurityGroups",),
    "AWS::FSx::FileSystem": ("SecurityGroupIds",),
}


def _check(template: Template) -> Iterator[Breach]:
    for kind, path in _GROUPS.items():
        for logical_id, properties in resources(template, kind):
            value = properties
            for name in path:
                value = value.get(name, {})
            if not value:
                yield Breach(logical_id, ".".join(("Properties", *path)))
    for logical_id, endpoint in resources(template, "AWS::EC2::VPCEndpoint"):
        if endpoint.get("VpcEndpointType") == "Interface" and not endpoint.get("SecurityGroupIds"):
            yield Breach(logical_id, "Properties.SecurityGroupIds")
    for logical_id, resource in template.get("Resources", {}).items():
        if "DefaultSecurityGroup" in text(resource.get("Properties", {})):
            yield Breach(logical_id, "Properties")


RULE = Rule(
    id="DefaultSecurityGroup",
    says="CloudFormation cannot close a VPC's default security group, so nothing may be in it.",
    fix="name a security group of its own",
    check=_check,
)
