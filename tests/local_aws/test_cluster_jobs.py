"""A cluster whose nodes run our real lifecycle scripts, and real jobs on it.

On Debian's Slurm, and on the stand-in for where there is none.
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from local_aws import daemon, slurm
from local_aws.clusters.slurm.keeper import descendants
from tests.local_aws.cluster_deployment import NAME, Deployment
from tests.local_aws.clusters import BUCKET
from tests.local_aws.conftest import Emulator, alive, free_port, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
on_slurm = pytest.mark.parametrize("emulator", ["slurm"], indirect=True)
on_the_stand_in = pytest.mark.parametrize("emulator", ["stand-in"], indirect=True)


def debian() -> str:
    """The folder of Debian's Slurm; where apt-get is, it is downloaded and never left out."""
    if not shutil.which("apt-get"):
        pytest.skip("neither apt-get nor Slurm is here: install slurmctld, slurmd and munge")
    return str(slurm.install().root)


@pytest.fixture(scope="module", params=["stand-in", "slurm"])
def emulator(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("aws") / "state"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOMORPH_SLURM", debian() if request.param == "slurm" else request.param)
        running = daemon.start(folder, free_port())
    yield Emulator(running)
    daemon.stop(folder)


@pytest.fixture(scope="module")
def deployed(emulator: Emulator) -> Deployment:
    """A cluster whose group of workers has grown from one to two."""
    deployment = Deployment(emulator)
    deployment.workers = 1
    assert deployment.create() == "CREATE_COMPLETE", emulator.failure(NAME)
    before = {row["id"] for row in deployment.nodes()}
    deployment.workers = 2
    assert deployment.change() == "UPDATE_COMPLETE", emulator.failure(NAME)
    assert before < {row["id"] for row in deployment.nodes()}
    until(lambda: deployment.up() == 2, "the nodes in Slurm")
    return deployment


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
    wanted = [f"dev* {row['name']} idle" for row in deployed.nodes() if row["group"] == "workers"]
    until(lambda: deployed.sinfo(cli=True) == wanted, "the nodes in Slurm")


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


@on_the_stand_in
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


def test_a_session_is_for_one_command_of_one_node(deployed):
    ssm = deployed.emulator.client("ssm")
    with pytest.raises(ClientError, match="TargetNotConnected"):
        ssm.start_session(Target="sagemaker-cluster:abcdefghijkl_workers-i-00000000000000000")
    arn = deployed.emulator.client("sagemaker").describe_cluster(ClusterName=NAME)["ClusterArn"]
    row = deployed.nodes()[0]
    target = f"sagemaker-cluster:{arn.rpartition('/')[2]}_{row['group']}-{row['id']}"
    with pytest.raises(ClientError, match="InvalidDocument"):
        ssm.start_session(Target=target, DocumentName="SSM-SessionManagerRunShell")


def test_a_job_runs_on_both_nodes_and_is_done(deployed):
    job = deployed.submit("short", steps="0.1")
    until(lambda: deployed.state(job) == "done", "the end of the job", 30)
    [row] = [row for row in deployed.job("status") if row["job"] == job]
    assert row["slurm"] == deployed.nodes()[0]["slurm"]
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
    third = deployed.submit("third", steps="0", nodes=2)
    assert [deployed.state(second), deployed.state(third)] == ["pending", "pending"]
    deployed.job("stop", str(third))
    assert deployed.state(third) == "stopped"
    deployed.job("stop", str(first))
    until(lambda: deployed.state(second) == "done", "the second job", 30)


@on_slurm
def test_the_nodes_say_which_slurm_they_have(deployed):
    [version] = {row["slurm"] for row in deployed.nodes()}
    assert re.fullmatch(r"slurm-wlm \d+\.\d+\.\d+", version)


def test_a_job_is_stopped_while_it_makes_its_shards(deployed):
    job = deployed.submit("sharding", steps="0", nodes=1, data="slow")
    pid = until(lambda: deployed.job("logs", str(job), "0")[0]["text"].strip(), "the shards", 30)
    assert deployed.job("stop", str(job)) == [{"job": job}]
    until(lambda: deployed.state(job) == "stopped", "the end of the job")
    until(lambda: not alive(int(pid)), "the end of what makes shards")


def test_a_job_is_stopped_between_its_last_look_and_its_ranks(deployed):
    script = deployed.node("controller") / "opt/isomorph/code/model_code/moe/lifecycle/train.sh"
    text = script.read_text()
    script.write_text(text.replace("\nsrun ", "\necho looked\nsleep 2\nsrun "))
    try:
        job = deployed.submit("between", steps="600")
    finally:
        script.write_text(text)
    until(lambda: "looked" in deployed.job("logs", str(job), "0")[0]["text"], "the look", 30)
    assert deployed.job("stop", str(job)) == [{"job": job}]
    until(lambda: deployed.state(job) == "stopped", "the end of the job", 30)
    assert not list((deployed.node("workers") / "fsx/checkpoints").glob("between/rank-*"))


@on_slurm
def test_a_job_whose_node_is_lost_goes_on_elsewhere_and_was_never_ended_in_between(deployed):
    job = deployed.submit("again", steps="600", nodes=1)
    noted = deployed.node("workers") / "fsx/checkpoints/again/rank-0.json"
    first = json.loads(until(lambda: noted.exists() and noted.read_text(), "the rank", 30))[2]
    noted.unlink()
    lost = first["SLURMD_NODENAME"]
    deployed.run(f"scontrol update NodeName={lost} State=DOWN Reason=lost")
    seen = set()

    def runs_again() -> bool:
        seen.add(deployed.state(job))
        return noted.exists()

    until(runs_again, "the second begin", 60)
    assert seen <= {"running", "pending"}
    second = json.loads(until(noted.read_text, "the rank"))[2]
    assert second["SLURMD_NODENAME"] != lost
    assert ("SLURM_RESTART_COUNT" in first, second["SLURM_RESTART_COUNT"]) == (False, "1")
    deployed.run(f"scontrol update NodeName={lost} State=RESUME")
    deployed.job("stop", str(job))
    until(lambda: deployed.state(job) == "stopped", "the end of the job", 30)


@on_slurm
def test_a_node_that_fails_the_prolog_is_drained_and_its_job_goes_to_another(deployed):
    until(lambda: deployed.up() == 2, "the nodes that the job may go to")
    bad = next(row for row in deployed.nodes() if row["group"] == "workers")
    python = Path(bad["folder"]) / "opt/isomorph/venv/bin/python"
    python.rename(python.with_name("gone"))
    job = deployed.submit("elsewhere", steps="0", nodes=1)
    until(lambda: deployed.state(job) == "done", "the end of the job", 60)
    assert f"dev* {bad['name']} drained" in deployed.sinfo()
    assert f"on {bad['name']}" not in deployed.job("logs", str(job), "0")[0]["text"]
    python.with_name("gone").rename(python)
    deployed.run(f"scontrol update NodeName={bad['name']} State=RESUME")
    until(lambda: deployed.up() == 2, "the node's return")


@on_slurm
def test_a_slurm_that_does_not_answer_is_no_lost_job(deployed):
    job = deployed.submit("alone", steps="600", nodes=1)
    ranks = deployed.node("workers") / "fsx/checkpoints/alone"
    # Slurm says that it runs before it has told the node, and what it has not told is lost indeed.
    until(lambda: list(ranks.glob("rank-*.json")), "the rank", 30)
    deployed.run("systemctl stop slurmctld")
    [said] = deployed.job("status")[-1:]
    assert "isomorph: Slurm does not answer: slurm_load_jobs error: " in said["said"]
    deployed.run("systemctl start slurmctld")
    until(lambda: "said" not in deployed.job("status")[0], "the controller's return")
    assert deployed.state(job) == "running"
    deployed.job("stop", str(job))
    until(lambda: deployed.state(job) == "stopped", "the end of the job", 30)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("logs", "99", "0"), "there is no job 99 on local-moe-000000"),
        (("logs", "x", "0"), "'x' is no job's number"),
        (("start", "name", "2", "JOB_STEPS=1;ls"), "is not NAME=VALUE"),
        (
            ("start", "name", "9", "JOB_STEPS=1"),
            "Slurm refuses the job: sbatch: error: Batch job sub",
        ),
        (("dance",), "'dance' is not a word of job.sh"),
    ],
)
def test_a_job_that_cannot_be(deployed, words, said):
    quoted = [f'"{word}"' for word in words]
    assert said in deployed.job(*quoted)[0]["said"]


def test_a_group_that_has_grown_shrinks_to_the_nodes_that_it_had(deployed):
    [first, _] = [row["id"] for row in deployed.nodes() if row["group"] == "workers"]
    deployed.workers = 1
    assert deployed.change() == "UPDATE_COMPLETE"
    assert [row["id"] for row in deployed.nodes() if row["group"] == "workers"] == [first]
    until(lambda: len(deployed.sinfo()) == deployed.up() == 1, "the end of the second worker")


def test_deleting_the_stack_ends_every_process_of_its_nodes(deployed):
    deployed.submit("left", steps="600", nodes=1)
    ranks = deployed.node("workers") / "fsx/checkpoints/left"
    until(lambda: list(ranks.glob("rank-*.json")), "the rank", 30)
    pids = [json.loads(path.read_text())[0] for path in ranks.glob("rank-*.json")]
    pids += [int((Path(row["folder"]) / "run/init.pid").read_text()) for row in deployed.nodes()]
    s3 = deployed.emulator.client("s3")
    for found in s3.list_buckets()["Buckets"]:
        for row in s3.list_objects_v2(Bucket=found["Name"]).get("Contents", []):
            if found["Name"] != BUCKET:
                s3.delete_object(Bucket=found["Name"], Key=row["Key"])
    assert deployed.emulator.delete(NAME) == "DELETE_COMPLETE", deployed.emulator.failure(NAME)
    until(lambda: not any(map(alive, pids)), "the end of all processes")


@on_slurm
def test_an_embedded_aws_that_was_killed_leaves_no_daemon_and_no_spool(emulator):
    again = Deployment(emulator, "local-moe-000001")
    again.workers = 1
    assert again.create() == "CREATE_COMPLETE", emulator.failure(again.name)
    until(lambda: again.up() == 1, "the node in Slurm")
    job = again.submit("left", steps="600", nodes=1)
    until(lambda: again.state(job) == "running", "the begin of the job", 30)
    spool = (Path(again.nodes()[0]["folder"]).parent / "spool").resolve()
    pids = descendants(emulator.running.pid)
    kinds = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids}
    assert {"munged", "slurmctld-wlm", "slurmd-wlm", "slurmstepd-wlm"} <= kinds
    os.kill(emulator.running.pid, signal.SIGKILL)
    until(lambda: not any(map(alive, pids)), "the end of all processes")
    assert (spool / "munge.key").exists()
    daemon.stop(emulator.running.state_dir)
    assert not spool.exists()
