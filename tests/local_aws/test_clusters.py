"""A cluster's nodes run our real lifecycle scripts."""

import json

import pytest
from botocore.exceptions import ClientError

from tests.local_aws.cluster_deployment import NAME, Deployment
from tests.local_aws.clusters import BUCKET, cluster, group, put_scripts
from tests.local_aws.conftest import Emulator, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def deployed(emulator: Emulator) -> Deployment:
    deployment = Deployment(emulator)
    assert deployment.create() == "CREATE_COMPLETE", emulator.failure(NAME)
    return deployment


def test_nodes_are_listed_with_their_state(deployed):
    sagemaker = deployed.emulator.client("sagemaker")
    found = sagemaker.describe_cluster(ClusterName=NAME)
    assert found["ClusterStatus"] == "InService"
    assert {row["InstanceGroupName"]: row["CurrentCount"] for row in found["InstanceGroups"]} == {
        "controller": 1,
        "workers": 2,
    }
    [workers] = [row for row in found["InstanceGroups"] if row["InstanceGroupName"] == "workers"]
    assert workers["CapacityRequirements"] == {"OnDemand": {}}
    assert workers["NetworkInterface"] == {"InterfaceType": "efa"}
    rows = sagemaker.list_cluster_nodes(ClusterName=found["ClusterArn"])["ClusterNodeSummaries"]
    assert [row["InstanceStatus"]["Status"] for row in rows] == ["Running"] * 3
    [mine] = sagemaker.list_clusters(NameContains="local-moe-0")["ClusterSummaries"]
    assert mine["ClusterArn"] == found["ClusterArn"]
    node = sagemaker.describe_cluster_node(ClusterName=NAME, NodeId=rows[0]["InstanceId"])
    assert node["NodeDetails"]["InstanceGroupName"] == "controller"


def test_every_phase_is_marked_in_cloudwatch(deployed):
    logs = deployed.emulator.client("logs")
    events = [
        json.loads(event["message"])
        for event in logs.filter_log_events(logGroupName=f"/{NAME}")["events"]
    ]
    worker = [event for event in events if event["node_type"] == "compute"]
    ended = {event["phase"] for event in worker if event["state"] == "done"}
    assert ended == {"check", "file-system", "code", "slurm", "all"}
    assert {event["cluster"] for event in events} == {NAME}
    arn = deployed.emulator.client("sagemaker").describe_cluster(ClusterName=NAME)["ClusterArn"]
    theirs = f"/aws/sagemaker/Clusters/{NAME}/{arn.rpartition('/')[2]}"
    streams = logs.describe_log_streams(logGroupName=theirs)["logStreams"]
    names = sorted(stream["logStreamName"].rpartition("/")[0] for stream in streams)
    assert names == [f"LifecycleConfig/{each}" for each in ("controller", "workers", "workers")]


def test_the_scripts_run_again_without_harm(deployed):
    for name in ("controller", "workers"):
        root = deployed.node(name)
        before = {path: (root / path).read_bytes() for path in (
            "etc/isomorph/cluster.env", "etc/isomorph/node.env", "proc/mounts",
            *(["opt/slurm/etc/slurm.conf"] if name == "controller" else
              ["etc/systemd/system/slurmd.service", "opt/isomorph/venv/made-of"]),
        )}  # fmt: skip
        inode = (root / "opt/isomorph/code").stat().st_ino
        said = deployed.run("bash -c 'cd \"$ISOMORPH_ROOT/opt/ml/lifecycle\" && bash on_create.sh'",
                            group=name)  # fmt: skip
        assert said.splitlines()[-1].endswith("phase all: done"), said
        assert "code is there already" in said
        assert {path: (root / path).read_bytes() for path in before} == before
        assert (root / "opt/isomorph/code").stat().st_ino == inode
    assert len(deployed.sinfo()) == 2


def test_what_is_put_into_the_bucket_is_in_the_file_system_and_back(deployed):
    s3 = deployed.emulator.client("s3")
    outputs = deployed.emulator.client("cloudformation").describe_stacks(StackName=NAME)
    bucket = {row["OutputKey"]: row["OutputValue"] for row in outputs["Stacks"][0]["Outputs"]}[
        "Data"
    ]
    s3.put_object(Bucket=bucket, Key="data/other/text/one.txt", Body=b"first")
    file = deployed.node("workers") / "fsx/data/other/text/one.txt"
    until(lambda: file.exists() and file.read_bytes() == b"first", "the import")
    (file.parent / "two.txt").write_bytes(b"second")

    def there() -> bool:
        keys = [row["Key"] for row in s3.list_objects_v2(Bucket=bucket)["Contents"]]
        return "data/other/text/two.txt" in keys

    until(there, "the export")
    s3.delete_object(Bucket=bucket, Key="data/other/text/one.txt")
    until(lambda: not file.exists(), "the removal")


def test_a_script_that_fails_rolls_the_stack_back_with_its_own_words(emulator):
    failing = Deployment(emulator, "local-moe-failing")
    failing.workers = 1
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


def test_a_session_is_for_one_command_of_one_node(deployed):
    ssm = deployed.emulator.client("ssm")
    with pytest.raises(ClientError, match="TargetNotConnected"):
        ssm.start_session(Target="sagemaker-cluster:abcdefghijkl_workers-i-00000000000000000")
    arn = deployed.emulator.client("sagemaker").describe_cluster(ClusterName=NAME)["ClusterArn"]
    row = deployed.nodes()[0]
    target = f"sagemaker-cluster:{arn.rpartition('/')[2]}_{row['group']}-{row['id']}"
    with pytest.raises(ClientError, match="InvalidDocument"):
        ssm.start_session(Target=target, DocumentName="SSM-SessionManagerRunShell")
