"""Where nodes may connect to."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, group in resources(template, "AWS::EC2::SecurityGroup"):
        egress = group.get("SecurityGroupEgress")
        if not egress or any(_anywhere(rule) for rule in egress):
            yield Breach(logical_id, "Properties.SecurityGroupEgress")
    for logical_id, rule in resources(template, "AWS::EC2::SecurityGroupEgress"):
        if _anywhere(rule):
            yield Breach(logical_id, "Properties.CidrIp")


def _anywhere(rule: Template) -> bool:
    return rule.get("CidrIp") == "0.0.0.0/0" or rule.get("CidrIpv6") == "::/0"


RULE = Rule(
    id="OpenEgress",
    says="A node that may connect to anywhere can send weights and prompts to anywhere. A group "
    "without egress rules may: EC2 then adds one that allows everything.",
    fix="allow_all_outbound=False, and egress rules to security groups or prefix lists",
    check=_check,
)
