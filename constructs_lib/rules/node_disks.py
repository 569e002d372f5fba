"""Disks of EC2 nodes."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, properties in resources(template, "AWS::EC2::LaunchTemplate"):
        disks = properties["LaunchTemplateData"].get("BlockDeviceMappings", [])
        volumes = [disk.get("Ebs", {}) for disk in disks]
        if not volumes or not all(
            each.get("Encrypted") and each.get("KmsKeyId") for each in volumes
        ):
            yield Breach(logical_id, "Properties.LaunchTemplateData.BlockDeviceMappings")


RULE = Rule(
    id="NodeDisks",
    says="A launch template must encrypt its disks with a key of ours; left out, the AMI decides.",
    fix="give the launch template a block device with encrypted=True and kms_key",
    check=_check,
)
