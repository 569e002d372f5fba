"""A run on EKS from start to end: Kubernetes is played, the pods' processes are real.

The command of the PyTorchJob's container runs as it is: it fetches the code by its digest, and
pod.sh starts torchrun, which meets the other pod's.
"""

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from moto.server import ThreadedMotoServer

from isomorph.commands.access import access
from isomorph.commands.logs import logs
from isomorph.commands.start import start
from isomorph.commands.status import status
from isomorph.commands.stop import stop
from isomorph.environments import load
from isomorph.errors import UserError
from isomorph.training.cluster import TrainingCluster
from tests.isomorph.kubernetes_played.environment import TEAMS, Caller
from tests.isomorph.kubernetes_played.operator import FULL, Operator
from tests.isomorph.kubernetes_played.server import Played, wait_for
from tests.model_code.with_torch.moe_runs import MODEL, make_data

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    """An AWS for commands and pods, with the code as the stack's asset has it."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


def code() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in ("common", "moe"):
            for path in sorted((ROOT / "model_code" / folder).rglob("*")):
                if path.suffix in (".py", ".sh", ".json"):
                    archive.write(path, path.relative_to(ROOT))
        archive.write(ROOT / "model_code" / "__init__.py", "model_code/__init__.py")
    return packed.getvalue()


@pytest.fixture
def caller(aws: str, monkeypatch: pytest.MonkeyPatch) -> Caller:
    found = Caller(monkeypatch, aws)
    packed = code()
    found.publish(code_sha256=hashlib.sha256(packed).hexdigest())
    found.client("s3").put_object(Bucket="sagemaker-test", Key="code.zip", Body=packed)
    return found


@pytest.fixture
def played(tmp_path: Path, caller: Caller) -> Iterator[Played]:
    found = Played(tmp_path)
    caller.describe(found)
    yield found
    found.close()


@pytest.fixture
def operator(played: Played, tmp_path: Path, aws: str, caller: Caller) -> Iterator[Operator]:
    pods = {"AWS_ENDPOINT_URL": aws, "AWS_ACCESS_KEY_ID": "pod", "AWS_SECRET_ACCESS_KEY": "pod",
            "ISOMORPH_METRIC_NAMESPACE": ""}  # fmt: skip
    found = Operator(played, tmp_path, pods)
    make_data(found.shared / "data" / "small")
    yield found
    found.close()


def run(command: Any, *words: str) -> str:
    words = words if command is status else (*words, "--env", "prod")
    done = CliRunner().invoke(command, words, catch_exceptions=False, standalone_mode=False)
    return str(done.stdout)


def state() -> tuple[str, str]:
    [found] = json.loads(run(status, "prod", "moe", "--json"))
    return found["state"], found["why"]


def steps(operator: Operator) -> list[int]:
    found = (operator.shared / "checkpoints" / "moe-small").glob("step-*")
    return sorted(int(path.name.rpartition("-")[2]) for path in found)


def link(operator: Operator, caller: Caller) -> None:
    """Bring what was put into the bucket to the file system, as its link to the bucket does."""
    s3 = caller.client("s3")
    for each in s3.list_objects_v2(Bucket="training").get("Contents", []):
        path = operator.shared / each["Key"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3.get_object(Bucket="training", Key=each["Key"])["Body"].read())


def admit(caller: Caller) -> None:
    caller.key = "ADMINKEY"
    run(access, "moe")
    caller.key = "MEMBERKEY"


def submit(operator: Operator, caller: Caller, folder: Path, *words: str) -> dict[str, Any]:
    config = folder / "small.json"
    training = {"context": 16, "batch": 8, "micro_batch": 2, "rate": 0.01, "warm_up": 2}
    config.write_text(json.dumps({"model": MODEL, "training": training}))
    given = ["--config", str(config), "--name", "moe-small", "--data", "small", "--nodes", "2",
             "--ranks-per-node", "1", "--checkpoint-every", "10", "--json"]  # fmt: skip
    found = dict(json.loads(run(start, "moe", *given, *words)))
    link(operator, caller)
    return found


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"event"')]


def test_a_run_waits_dies_goes_on_and_stops_with_a_checkpoint_for_the_next(
    operator, played, caller, tmp_path
):
    """One after the other, as it may happen to a run: each start takes a pod several seconds."""
    caller.outputs |= TEAMS
    caller.key = "ADMINKEY"
    for team in ("research", "serving"):
        name = f"hyperpod-ns-{team}"
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        played.store.create("Namespace", "", made)
        queue = {"kind": "LocalQueue",
                 "metadata": {"name": f"{name}-localqueue", "namespace": name}}  # fmt: skip
        played.store.create("LocalQueue", name, queue)
    admit(caller)
    operator.room = False
    submit(operator, caller, tmp_path, "--steps", "100000")
    wait_for(lambda: state()[1] == FULL)
    assert state()[0] == "pending"
    assert json.loads(run(logs, "moe", "--json"))["why"] == FULL

    jobs = TrainingCluster(load("prod")).jobs()
    [first] = jobs.all()
    said: list[str] = []
    reader = threading.Thread(
        target=lambda: said.extend(part["text"] for part in jobs.log(first, follow=True))
    )
    operator.room = True
    wait_for(lambda: steps(operator), 120)
    reader.start()
    assert state() == ("running", "")
    with pytest.raises(UserError, match="job research/moe-small runs already"):
        submit(operator, caller, tmp_path, "--steps", "100000")

    for container in operator.containers.values():
        container.kill()
    restarted = wait_for(lambda: [each for each in operator.containers.values() if each.restarts])
    wait_for(lambda: b"resumed" in b"".join(restarted[0].lines), 120)
    log = events(run(logs, "moe"))  # of both containers, the one that died and the one after it
    assert [each["event"] for each in log].count("start") == 2

    job = played.store.get("PyTorchJob", "hyperpod-ns-research", "moe-small")
    assert json.loads(run(stop, "moe", "--json"))["state"] == "stopped"
    reader.join(timeout=30)
    assert not reader.is_alive()
    ended = [each for each in events("".join(said)) if each["event"] == "end"]
    assert [each["stopped"] for each in ended] == [True]
    saved = steps(operator)[-1]
    assert saved == ended[0]["step"]
    assert events("".join(said))[0]["ranks"] == 2
    [workload] = played.store.all("Workload")
    assert workload["spec"]["active"] is False
    left = played.store.get("PyTorchJob", "hyperpod-ns-research", "moe-small")
    assert left["metadata"]["uid"] == job["metadata"]["uid"]
    assert json.loads(run(logs, "moe", "--json"))["why"].startswith("there is no log: its pods ar")

    submit(operator, caller, tmp_path, "--steps", str(saved + 3), "--nodes", "1")
    log = run(logs, "moe", "--follow")
    resumed = [each["step"] for each in events(log) if each["event"] == "resumed"]
    assert resumed == [saved], (log, operator.said())
    assert events(log)[-1] | {"time": ""} == {
        "event": "end", "step": saved + 3, "stopped": False, "time": "",
    }  # fmt: skip
    assert state()[0] == "done"
    assert run(logs, "moe") == log
