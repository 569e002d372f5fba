"""A cluster is deployed, its nodes set themselves up, and two of them train a mixture of experts.

Real CDK CLI, the deployed lifecycle scripts, wheels and code, and Debian's Slurm, wherever its
packages are; the text is Python's own reference.
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isomorph.environments import Environment
from local_aws import slurm
from local_aws.daemon import Running
from local_aws.describe import DESCRIBE, NOTHING_TO_SEE, resources
from tests.e2e.conftest import Command, bring_up, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
STACK = "local-moe-training"


@pytest.fixture(scope="module")
def scheduler() -> str:
    """What runs the jobs: the stand-in only where neither Slurm nor Debian's packages are."""
    found = slurm.find() or (slurm.install() if shutil.which("apt-get") else None)
    return found.version if found else "a stand-in for Slurm"


@pytest.fixture(scope="module")
def up(isomorph: Command, scheduler: str) -> Iterator[dict[str, Any]]:
    """This half alone: test_moe_serving.py brings up both."""
    yield from bring_up(isomorph, "moe-training", seconds=600)


@pytest.fixture(scope="module")
def shared(running: Running) -> Path:
    """The file system that all nodes share, seen from a node."""
    return Path(running.nodes()[0]["folder"]) / "fsx"


def start(isomorph: Command, *words: str) -> int:
    done = isomorph("start", "moe", "--env", "local", "--json", *words)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["job"])


def events(text: str, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines() if line.startswith('{"event"')]
    return [event for event in found if event["event"] == kind]


def log(shared: Path, job: int) -> str:
    path = shared / "logs" / f"{job}.log"
    return path.read_text() if path.exists() else ""


def ranks(shared: Path) -> list[int]:
    """The processes of the trainer on this deployment's nodes, without torchrun's own."""
    nodes = str(shared.parents[1])
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if words[0].startswith(nodes) and "model_code.moe.train" in words:
            found += [] if "torch.distributed.run" in words else [int(path.parent.name)]
    return found


def test_up_deploys_the_cluster_and_all_its_nodes_run(up, isomorph, scheduler) -> None:
    [row] = up["innovations"]
    assert (row["innovation"], row["stack"]) == ("moe", STACK)
    assert re.findall(r"(\w+) ip-[\d-]+ \(running\)", row["runs_in"]) == [
        "controller",
        "workers",
        "workers",
    ]
    assert row["runs_in"].endswith(f", jobs by {scheduler}")
    assert "3 of 3 nodes run" in isomorph("status", "local").stdout


def test_every_resource_of_the_template_is_really_there(local: Environment) -> None:
    found = resources(STACK, local.client)
    assert {resource.kind for resource in found} <= {*DESCRIBE, *NOTHING_TO_SEE}
    assert [resource for resource in found if not resource.visible(local.client)] == []


def test_the_nodes_told_cloudwatch_how_they_were_set_up(local: Environment) -> None:
    group = local.outputs("moe-training")["LogGroup"]
    found = local.client("logs").filter_log_events(logGroupName=group)["events"]
    told = [json.loads(event["message"]) for event in found]
    ended = [(event["node_type"], event["phase"]) for event in told if event["state"] == "done"]
    assert ended.count(("compute", "code")) == 2
    assert ended.count(("controller", "slurm")) == 1


def test_a_run_trains_on_two_nodes_and_is_done(local, isomorph, shared, scheduler) -> None:
    job = start(isomorph, "--steps", "12")
    done = isomorph("logs", "moe", "--env", "local", "--job", str(job), "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    [begun] = events(done.stdout, "start")
    assert begun["ranks"] == 2
    losses = [event["loss"] for event in events(done.stdout, "step")]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.3
    assert events(done.stdout, "step")[-1]["dropped_tokens"] == 0
    [state] = json.loads(isomorph("status", "local", "moe", "--json").stdout)
    assert (state["job"], state["state"], state["nodes"]) == (job, "done", 2)
    assert state["slurm"] == scheduler
    url = local.outputs("moe-training")["CheckpointUrl"]
    bucket, _, prefix = url.removeprefix("s3://").partition("/")

    def exported() -> bool:
        rows = local.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        return any(row["Key"].endswith("step-00000012/.metadata") for row in rows)

    eventually(exported, 30)


def test_a_killed_rank_a_stop_and_a_second_start_lose_nothing(isomorph, shared) -> None:
    words = ("--name", "long", "--checkpoint-every", "4")
    job = start(isomorph, *words, "--steps", "2000")
    again = isomorph("start", "moe", "--env", "local", *words, "--steps", "5")
    assert again.returncode == 1
    assert f"error: job {job}, long, runs already" in again.stderr

    eventually(lambda: events(log(shared, job), "checkpoint"), 120)
    os.kill(ranks(shared)[0], signal.SIGKILL)
    eventually(lambda: len(events(log(shared, job), "start")) == 2, 120)
    before = len(events(log(shared, job), "step"))
    eventually(lambda: len(events(log(shared, job), "step")) > before, 120)
    text = log(shared, job)
    first_after = events(text[text.rindex('{"event": "start"') :], "step")[0]["step"]
    assert first_after - 1 in {event["step"] for event in events(text, "checkpoint")}

    done = isomorph("stop", "moe", "--env", "local", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "stopped"
    saved = events(log(shared, job), "checkpoint")[-1]["step"]
    assert saved == events(log(shared, job), "step")[-1]["step"]
    assert ranks(shared) == []

    job = start(isomorph, *words, "--steps", str(saved + 2))
    done = isomorph("logs", "moe", "--env", "local", "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [event["step"] for event in events(done.stdout, "step")]
    assert steps == [saved + 1, saved + 2]


def test_what_the_controller_refuses_is_one_line(isomorph) -> None:
    done = isomorph("start", "moe", "--env", "local", "--name", "a b")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: 'JOB_NAME=a b' is not NAME=VALUE")
    assert "there is no job 99 on local-moe" in isomorph("stop", "moe", "--job", "99").stderr
