"""Clusters that cannot be made, with the reason."""

import pytest
from botocore.exceptions import ClientError

from tests.local_aws.cluster_deployment import Deployment
from tests.local_aws.clusters import BUCKET, cluster, group, put_scripts


def test_a_script_that_fails_rolls_the_stack_back_with_its_own_words(emulator):
    failing = Deployment(emulator, "local-moe-failing")
    failing.workers = 0
    failing.settings["code_sha256"] = "0" * 64
    assert failing.create() == "ROLLBACK_COMPLETE"
    said = emulator.failure(failing.name)
    assert "the lifecycle script failed on " in said
    assert (
        f"code: s3://{BUCKET}/local-moe-failing/code.zip does not have the sha256 {'0' * 64}"
        in said
    )
    assert failing.nodes() == []
    with pytest.raises(ClientError, match="not found"):
        emulator.client("sagemaker").describe_cluster(ClusterName=failing.name)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda uri, row: row["LifeCycleConfig"].update(SourceS3Uri="s3://other/x"),
         "must begin with s3://sagemaker-"),
        (lambda uri, row: row["LifeCycleConfig"].update(SourceS3Uri=f"{uri}/none"),
         "there is no on_create.sh at s3://sagemaker-"),
        (lambda uri, row: row["LifeCycleConfig"].update(SourceS3Uri="s3://sagemaker-none/x"),
         "cannot be read"),
        (lambda uri, row: row.update(LifeCycleConfig={"SourceS3Uri": uri}), "has no OnCreate"),
        (lambda uri, row: row.update(InstanceStorageConfigs=[
            {"FsxLustreConfig": {"DnsName": "fs-0", "MountName": "m", "MountPath": "/fsx"}}]),
         "there is no file system 'fs-0'"),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_made_says_why(emulator, spoil, said):
    uri = put_scripts(emulator, "odd", {"on_create.sh": "#!/bin/bash\n"})
    row = group("workers", uri)
    spoil(uri, row)
    name = f"odd-{abs(hash(said)) % 10**6}"
    assert emulator.create(name, cluster(name, row)) == "ROLLBACK_COMPLETE"
    assert said in emulator.failure(name)
