"""HyperPod clusters and the file systems that their nodes share."""

from collections.abc import Mapping
from typing import Any

from local_aws.clusters.filesystems import FileSystems
from local_aws.clusters.runner import Cluster, Clusters
from local_aws.resources.table import Aws, Made, Properties, Resource, Type

_CLUSTER = frozenset(
    {
        "ClusterName",
        "InstanceGroups",
        "NodeProvisioningMode",
        "NodeRecovery",
        "Orchestrator",
        "Tags",
        "TieredStorageConfig",
        "VpcConfig",
    }
)
# What is the same cluster only as long as it stays as it is.
_CREATE_ONLY = ("ClusterName", "VpcConfig", "Orchestrator")
_SYSTEM = frozenset(
    {
        "FileSystemType",
        "FileSystemTypeVersion",
        "KmsKeyId",
        "LustreConfiguration",
        "SecurityGroupIds",
        "StorageCapacity",
        "StorageType",
        "SubnetIds",
        "Tags",
    }
)
_LINK = frozenset(
    {
        "BatchImportMetaDataOnCreate",
        "DataRepositoryPath",
        "FileSystemId",
        "FileSystemPath",
        "ImportedFileChunkSize",
        "S3",
        "Tags",
    }
)


class _Clusters:
    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters

    def create(self, aws: Aws, resource: Resource) -> Made:
        named = {"ClusterName": resource.name(63), **resource.properties}
        return _made(self._clusters.create(aws.account, aws.region, named))

    def update(self, aws: Aws, arn: str, resource: Resource) -> Made:
        changed = [
            name
            for name in _CREATE_ONLY
            if resource.before.get(name) != resource.properties.get(name)
        ]
        if changed:  # the engine deletes the old one once the update has succeeded
            return self.create(aws, resource)
        found = self._clusters.find(aws.account, aws.region, arn)
        if found is None:
            raise ValueError(f"there is no cluster {arn}")
        self._clusters.update(found, {"ClusterName": found.name, **resource.properties})
        return _made(found)

    def delete(self, aws: Aws, arn: str, _: Properties) -> None:
        found = self._clusters.find(aws.account, aws.region, arn)
        if found is not None:
            self._clusters.delete(found)


def _made(cluster: Cluster) -> Made:
    return Made(cluster.arn, {"ClusterArn": cluster.arn, "ClusterStatus": cluster.status})


def _whole(given: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return properties with the numbers that a template may have as text."""
    return {key: int(value) if key in names else value for key, value in given.items()}


def _system(properties: Properties) -> dict[str, Any]:
    given = _whole(properties, "StorageCapacity")
    lustre = _whole(given.get("LustreConfiguration", {}), "PerUnitStorageThroughput")
    return {**given, "LustreConfiguration": lustre}


def clusters_types(clusters: Clusters, systems: FileSystems) -> tuple[Type, ...]:
    """Return the types whose resources are played by these runners."""
    hyperpod = _Clusters(clusters)

    def create_system(aws: Aws, resource: Resource) -> Made:
        made = systems.create(aws.account, aws.region, _system(resource.properties))
        return _made_system(made)

    def update_system(_: Aws, name: str, resource: Resource) -> Made:
        return _made_system(systems.update(name, _system(resource.properties)))

    def create_link(aws: Aws, resource: Resource) -> Made:
        made = systems.link(aws.account, aws.region, dict(resource.properties))
        name = str(made["AssociationId"])
        return Made(name, {"AssociationId": name, "ResourceARN": str(made["ResourceARN"])})

    return (
        Type(
            "AWS::SageMaker::Cluster", _CLUSTER, hyperpod.create, hyperpod.delete, hyperpod.update
        ),
        Type(
            "AWS::FSx::FileSystem",
            _SYSTEM,
            create_system,
            lambda _, name, __: systems.delete(name),
            update_system,
        ),
        Type(
            "AWS::FSx::DataRepositoryAssociation",
            _LINK,
            create_link,
            lambda _, name, __: systems.unlink(name),
        ),
    )


def _made_system(record: Mapping[str, Any]) -> Made:
    return Made(
        str(record["FileSystemId"]),
        {
            "DNSName": str(record["DNSName"]),
            "LustreMountName": str(record["LustreConfiguration"]["MountName"]),
            "ResourceARN": str(record["ResourceARN"]),
        },
    )
