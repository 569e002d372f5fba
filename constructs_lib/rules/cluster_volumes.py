"""Disks and file systems of clusters. cdk-nag has no rule for either."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, cluster in resources(template, "AWS::SageMaker::Cluster"):
        for number, group in enumerate(cluster.get("InstanceGroups", [])):
            configs = [
                each.get("EbsVolumeConfig") for each in group.get("InstanceStorageConfigs", [])
            ]
            volumes = [volume for volume in configs if volume]
            root = any(volume.get("RootVolume") for volume in volumes)
            if not root or not all(volume.get("VolumeKmsKeyId") for volume in volumes):
                yield Breach(
                    logical_id, f"Properties.InstanceGroups.{number}.InstanceStorageConfigs"
                )
    for logical_id, system in resources(template, "AWS::FSx::FileSystem"):
        if "KmsKeyId" not in system:
            yield Breach(logical_id, "Properties.KmsKeyId")


RULE = Rule(
    id="ClusterVolumes",
    says="Disks of a cluster's nodes, the system's own among them, and the file system that they "
    "share must be encrypted with a key of ours: data and checkpoints are on them.",
    fix="VolumeKmsKeyId for each volume, one of them with RootVolume; KmsKeyId for file systems",
    check=_check,
)
