"""A cluster with the file system that its nodes share, linked to a bucket."""

from tests.local_aws.clusters import BUCKET, group
from tests.local_aws.templates import Template, ref, resource

EVENTS = {"Events": ["NEW", "CHANGED", "DELETED"]}

CLUSTERS: Template = {
    "Lustre": resource(
        "FSx::FileSystem",
        FileSystemType="LUSTRE",
        StorageCapacity=1200,
        SubnetIds=["subnet-1"],
        LustreConfiguration={"DeploymentType": "PERSISTENT_2", "PerUnitStorageThroughput": 125},
    ),
    "LustreData": resource(
        "FSx::DataRepositoryAssociation",
        FileSystemId=ref("Lustre"),
        FileSystemPath="/data",
        DataRepositoryPath={"Fn::Sub": "s3://${Models}/data"},
        S3={"AutoImportPolicy": EVENTS, "AutoExportPolicy": EVENTS},
    ),
    "Cluster": resource(
        "SageMaker::Cluster",
        InstanceGroups=[group("workers", f"s3://{BUCKET}/contract")],
        Orchestrator={"Slurm": {"SlurmConfigStrategy": "Managed"}},
        VpcConfig={"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]},
        NodeRecovery="Automatic",
    ),
}
