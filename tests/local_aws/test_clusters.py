"""A cluster's nodes run our real lifecycle scripts, and then real jobs."""

import json
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.local_aws.cluster_deployment import NAME, Deployment
from tests.local_aws.clusters import BUCKET, cluster, group, put_scripts
from tests.local_aws.conftest import Emulator, alive, until

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
    rows = sagemaker.list_cluster_nodes(ClusterName=found["ClusterArn"])["ClusterNodeSummaries"]
    assert [row["InstanceStatus"]["Status"] for row in rows] == ["Running"] * 3
    [mine] = sagemaker.list_clusters(NameContains="local-moe-0")["ClusterSummaries"]
    assert mine["ClusterArn"] == found["ClusterArn"]
    node = sagemaker.describe_cluster_node(ClusterName=NAME, NodeId=rows[0]["InstanceId"])
    assert node["NodeDetails"]["InstanceGroupName"] == "controller"


def test_the_scripts_did_what_each_kind_of_node_needs(deployed):
    controller, worker = deployed.node("controller"), deployed.node("workers")
    assert "Include" in (controller / "opt/slurm/etc/slurm.conf").read_text()
    assert (worker / "opt/isomorph/venv/bin/python").exists()
    assert not (controller / "opt/isomorph/venv").exists()
    unit = (worker / "etc/systemd/system/slurmd.service").read_text()
    assert "--conf-server 127." in unit
    assert not (controller / "etc/systemd/system/slurmd.service").exists()
    assert "@tcp:/" in (worker / "proc/mounts").read_text()
    assert (worker / "fsx/checkpoints").samefile(controller / "fsx/checkpoints")
    assert deployed.run("bash -c sinfo", cli=True).splitlines()[1:] == [
        f"dev {row['name']} idle" for row in deployed.nodes() if row["group"] == "workers"
    ]


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
    assert len(deployed.run("bash -c sinfo").splitlines()) == 3


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


def test_a_job_runs_on_both_nodes_and_is_done(deployed):
    job = deployed.submit("short", steps="0.1")
    until(lambda: deployed.state(job) == "done", "the end of the job", 30)
    [log] = deployed.job("logs", str(job), "0")
    assert log["state"] == "done"
    lines = log["text"].splitlines()
    assert lines[0] == "sharded []"
    assert sorted(line.partition(" on ")[0] for line in lines[1:]) == ["rank 0 of 2", "rank 1 of 2"]
    assert deployed.job("logs", str(job), str(log["next"]))[0]["text"] == ""
    ranks = sorted((deployed.node("workers") / "fsx/checkpoints/short").glob("rank-*"))
    roots = {json.loads(path.read_text())[2]["ISOMORPH_ROOT"] for path in ranks}
    assert roots == {row["folder"] for row in deployed.nodes() if row["group"] == "workers"}


def test_a_job_that_fails_says_so(deployed):
    job = deployed.submit("failing", steps="0", config="fails")
    until(lambda: deployed.state(job) == "failed", "the end of the job", 30)
    [log] = deployed.job("logs", str(job), "0")
    assert "train: it fails" in log["text"]


def test_a_running_job_is_not_started_again_and_is_stopped(deployed):
    job = deployed.submit("long", steps="600")
    ranks = deployed.node("workers") / "fsx/checkpoints/long"
    until(lambda: len(list(ranks.glob("rank-*.json"))) == 2, "the ranks", 30)
    [said] = deployed.job("start", "long", "2", "JOB_STEPS=1")
    assert said["said"].startswith(f"isomorph: job {job}, long, runs already")
    assert deployed.job("stop", str(job)) == [{"job": job}]
    until(lambda: deployed.state(job) == "stopped", "the end of the job", 30)
    [log] = deployed.job("logs", str(job), "0")
    assert log["text"].count("saved") == 2
    pids = [json.loads(path.read_text())[0] for path in ranks.glob("rank-*.json")]
    until(lambda: not any(map(alive, pids)), "the end of the ranks")
    assert "does not run: it is stopped" in deployed.job("stop", str(job))[0]["said"]


def test_jobs_wait_for_nodes(deployed):
    first = deployed.submit("first", steps="600", nodes=1)
    second = deployed.submit("second", steps="0", nodes=2)
    assert deployed.state(second) == "pending"
    deployed.job("stop", str(first))
    until(lambda: deployed.state(second) == "done", "the second job", 30)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("logs", "99", "0"), "there is no job 99 on local-moe-000000"),
        (("logs", "x", "0"), "'x' is no job's number"),
        (("start", "name", "2", "JOB_STEPS=1;ls"), "is not NAME=VALUE"),
        (("start", "name", "9", "JOB_STEPS=1"), "Slurm refuses the job: sbatch: error: Node count"),
        (("dance",), "'dance' is not a word of job.sh"),
    ],
)
def test_a_job_that_cannot_be(deployed, words, said):
    quoted = [f'"{word}"' for word in words]
    assert said in deployed.job(*quoted)[0]["said"]


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


def test_a_group_grows_and_shrinks(deployed):
    deployed.workers = 3
    uri = f"s3://{BUCKET}/lifecycle/{NAME}"
    before = {row["id"] for row in deployed.nodes()}
    deployed.emulator.begin(NAME, deployed.template(uri), update=True)
    assert deployed.emulator.settled(NAME, 120) == "UPDATE_COMPLETE"
    assert before < {row["id"] for row in deployed.nodes()}
    until(lambda: len(deployed.run("bash -c sinfo").splitlines()) == 4, "the third worker")
    deployed.workers = 2
    assert deployed.emulator.update(NAME, deployed.template(uri)) == "UPDATE_COMPLETE"
    assert {row["id"] for row in deployed.nodes()} == before


def test_deleting_the_stack_ends_every_process_of_its_nodes(deployed):
    deployed.submit("left", steps="600")
    ranks = deployed.node("workers") / "fsx/checkpoints/left"
    until(lambda: len(list(ranks.glob("rank-*.json"))) == 2, "the ranks", 30)
    pids = [json.loads(path.read_text())[0] for path in ranks.glob("rank-*.json")]
    pids += [int((Path(row["folder"]) / "run/init.pid").read_text()) for row in deployed.nodes()]
    s3 = deployed.emulator.client("s3")
    for found in s3.list_buckets()["Buckets"]:
        for row in s3.list_objects_v2(Bucket=found["Name"]).get("Contents", []):
            if found["Name"] != BUCKET:
                s3.delete_object(Bucket=found["Name"], Key=row["Key"])
    assert deployed.emulator.delete(NAME) == "DELETE_COMPLETE", deployed.emulator.failure(NAME)
    until(lambda: not any(map(alive, pids)), "the end of all processes")
