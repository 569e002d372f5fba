"""Templates of clusters, and the scripts that their nodes run."""

from typing import Any

from tests.local_aws.conftest import Emulator
from tests.local_aws.templates import Template, resource

BUCKET = "sagemaker-local-000000000000-us-east-1"


def put_scripts(emulator: Emulator, prefix: str, files: dict[str, str]) -> str:
    """Put lifecycle files below a prefix, as the CDK CLI publishes them, and return its URI."""
    s3 = emulator.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    for name, content in files.items():
        s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=content.encode())
    return f"s3://{BUCKET}/{prefix}"


def group(name: str, uri: str, count: int = 1, **more: Any) -> dict[str, Any]:
    """An instance group."""
    kind = "Controller" if name == "controller" else "Compute"
    slurm = {"NodeType": kind, **({"PartitionNames": ["dev"]} if kind == "Compute" else {})}
    return {
        "InstanceGroupName": name,
        "InstanceType": "ml.r7i.large",
        "InstanceCount": count,
        "ExecutionRole": "arn:aws:iam::000000000000:role/Node",
        "LifeCycleConfig": {"SourceS3Uri": uri, "OnCreate": "on_create.sh"},
        "SlurmConfig": slurm,
        **more,
    }


def cluster(name: str, *groups: dict[str, Any], **more: Any) -> Template:
    """A template with one cluster."""
    return {
        "Resources": {
            "Cluster": resource(
                "SageMaker::Cluster",
                ClusterName=name,
                InstanceGroups=list(groups),
                Orchestrator={"Slurm": {"SlurmConfigStrategy": "Managed"}},
                NodeRecovery="Automatic",
                **more,
            )
        }
    }
