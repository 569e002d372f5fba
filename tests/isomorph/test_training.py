"""Commands on a training cluster, where the cluster is played by a few lines."""

import json
import os
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber
from click.testing import CliRunner
from moto import mock_aws

from isomorph.commands.access import access
from isomorph.commands.logs import logs
from isomorph.commands.start import start
from isomorph.commands.status import status
from isomorph.commands.stop import stop
from isomorph.environments import Environment, load
from isomorph.errors import UserError
from isomorph.training import sessions
from isomorph.training.cluster import TrainingCluster
from isomorph.training.submit import PYTHON, config_of, upload

OUTPUTS = {
    "ClusterName": "dev-moe-1", "ClusterArn": "arn:aws:sagemaker:us-east-1:1:cluster/abcdefghijkl",
    "Orchestrator": "slurm", "ControllerGroup": "controller", "Workers": "4", "RanksPerNode": "8",
    "WorkerType": "ml.p5e.48xlarge", "DataUrl": "s3://training/data/", "Namespace": "isomorph",
}  # fmt: skip
NODE = {"InstanceGroupName": "controller", "InstanceId": "i-1", "InstanceType": "ml.r7i.large",
        "InstanceStatus": {"Status": "Running"}}  # fmt: skip
KEYS = {"region_name": "us-east-1", "aws_access_key_id": "a", "aws_secret_access_key": "b"}
# What the plugin shows of a session: it says more than the command, with a terminal's line ends.
PLUGIN = """#!/bin/sh
[ "$3" = StartSession ] || exit 2
printf '\\r\\nStarting session with SessionId: x\\r\\n%s\\r\\nExiting session\\r\\n' "$SAYS"
"""


class Cluster:
    """A cluster that says what it is told to say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outputs, self.nodes = dict(OUTPUTS), [NODE]
        self.says: list[list[dict[str, Any]]] = []
        self.asked: list[tuple[str, ...]] = []
        monkeypatch.setattr(Environment, "outputs", lambda *_: self.outputs)
        monkeypatch.setattr(TrainingCluster, "nodes", lambda _: self.nodes)
        monkeypatch.setattr(sessions, "run", self.run)
        monkeypatch.setattr("time.sleep", lambda _: None)

    def run(self, _: Environment, target: str, words: list[str]) -> str:
        assert target == "sagemaker-cluster:abcdefghijkl_controller-i-1"
        assert words[0] == "model_code/moe/lifecycle/job.sh"
        self.asked.append(tuple(words[1:]))
        return "\n".join(json.dumps(row) for row in self.says.pop(0))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def run(command: Any, *words: str) -> str:
    done = CliRunner().invoke(command, words, catch_exceptions=False, standalone_mode=False)
    return str(done.stdout)


def job(number: int, state: str) -> dict[str, Any]:
    return {"job": number, "name": "moe-tiny", "state": state, "nodes": 4, "config": "tiny",
            "steps": "5", "begun": "2026"}  # fmt: skip


def test_start_hands_over_every_setting(cluster):
    cluster.says = [[job(7, "pending")]]
    said = run(start, "moe", "--env", "dev", "--steps", "5", "--nodes", "2", "--json")
    assert json.loads(said)["job"] == 7
    [(verb, name, nodes, *settings)] = cluster.asked
    assert (verb, name, nodes) == ("start", "moe-tiny", "2")
    given = dict(word.split("=") for word in settings)
    assert given["JOB_STEPS"], given["JOB_RANKS"] == ("5", "8")
    assert given["JOB_DATA"] == PYTHON
    assert float(given["JOB_PEAK_TFLOPS"]) > 900  # H200's dense bf16
    scripts = Path("model_code/moe/lifecycle")
    for script in ("train.sh", "ranks.sh", "pod.sh"):
        for name in given:
            if script != "train.sh" and name in ("JOB_TEXTS", "JOB_HELD_OUT", "JOB_VOCABULARY"):
                continue
            assert name in "".join(
                (scripts / each).read_text() for each in ("train.sh", "ranks.sh")
            )


def test_logs_follow_until_the_run_has_ended(cluster):
    def part(text: str, state: str, following: int) -> list[dict[str, Any]]:
        return [{"text": text, "state": state, "next": following}]

    cluster.says = [
        [job(7, "running")], part("one\n", "running", 4), part("", "running", 4),
        part("two\n", "done", 8), part("", "done", 8),
    ]  # fmt: skip
    assert run(logs, "moe", "--env", "dev", "--follow") == "one\ntwo\n"
    assert cluster.asked[1:3] == [("logs", "7", "0"), ("logs", "7", "4")]
    cluster.says = [[job(7, "failed")], part("", "failed", 0)]
    with pytest.raises(UserError, match="job 7 has ended: failed"):
        run(logs, "moe", "--env", "dev", "--follow")


def test_stop_takes_the_run_that_runs_and_waits_for_its_end(cluster):
    cluster.says = [
        [job(8, "done"), job(7, "running")], [{"job": 7}],
        [job(8, "done"), job(7, "running")], [job(8, "done"), job(7, "stopped")],
    ]  # fmt: skip
    assert json.loads(run(stop, "moe", "--env", "dev", "--json"))["state"] == "stopped"
    assert cluster.asked[1] == ("stop", "7")
    cluster.says = [[job(8, "done")]]
    with pytest.raises(UserError, match="there is no job that runs on dev-moe-1; jobs: 8"):
        run(stop, "moe", "--env", "dev")
    cluster.says = [[]]
    with pytest.raises(UserError, match="there is no job 9 on dev-moe-1; jobs: none"):
        run(stop, "moe", "--env", "dev", "--job", "9")


def test_status_shows_runs_the_newest_first(cluster):
    cluster.says = [[job(1, "done"), job(2, "running")]]
    lines = run(status, "dev", "moe").splitlines()
    assert [line.split()[0] for line in lines] == ["job", "2", "1"]


@pytest.mark.parametrize("command", [start, logs, stop, access])
def test_what_has_no_cluster_is_refused(command):
    with pytest.raises(UserError, match="'gqa' has no training cluster; moe has one"):
        run(command, "gqa", "--env", "dev")
    with pytest.raises(UserError, match="'gqa' has no training cluster"):
        run(status, "dev", "gqa")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nodes", "5"), r"--nodes is 5; dev-moe-1 has 4 workers \(innovations.moe.training"),
        (("--data", "x", "--text", "y"), "--data names what is on the cluster"),
        (("--team", "x"), "--team is for EKS; dev-moe-1 is orchestrated by Slurm"),
        (("--manifests",), "--manifests is for EKS; dev-moe-1 is orchestrated by Slurm"),
        (("--config", "none"), "no config 'none'; there are .*tiny"),
        (("--text", "/none"), "/none cannot be read: No such file"),
    ],
)
def test_a_run_that_cannot_be(cluster, words, said):
    with pytest.raises(UserError, match=said):
        run(start, "moe", "--env", "dev", *words)


def test_a_controller_that_does_not_run_is_named(cluster):
    cluster.nodes = [NODE | {"InstanceStatus": {"Status": "Pending"}}]
    with pytest.raises(UserError, match="the controller of dev-moe-1 does not run: Pending"):
        run(status, "dev", "moe")
    cluster.nodes = []
    with pytest.raises(UserError, match="does not run: there is none"):
        run(status, "dev", "moe")


def test_a_job_of_slurm_is_a_number(cluster):
    for command in (logs, stop):
        cluster.says = [[job(8, "done"), job(7, "running")]]
        with pytest.raises(UserError, match="--job is 'moe-tiny'; Slurm's are numbers; jobs: 8, 7"):
            run(command, "moe", "--env", "dev", "--job", "moe-tiny")


def test_slurm_has_no_manifests_and_no_members(cluster):
    with pytest.raises(UserError, match="--manifests is for EKS; dev-moe-1 is orchestrated by Slu"):
        TrainingCluster(load("dev")).jobs().manifests(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="dev-moe-1 is orchestrated by Slurm: whoever may start se"):
        run(access, "moe", "--env", "dev")


def test_an_answer_that_is_none_is_shown(cluster, monkeypatch):
    monkeypatch.setattr(sessions, "run", lambda *_: "bash: no such file")
    with pytest.raises(UserError, match="the controller of dev-moe-1 said 'bash: no such file'"):
        run(status, "dev", "moe")


def test_a_stack_that_is_not_deployed_says_how_to(monkeypatch):
    monkeypatch.setattr(Environment, "describe", lambda *_: None)
    with pytest.raises(UserError, match="dev-moe-training is not deployed; deploy it with"):
        run(status, "dev", "moe")


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A session whose plugin prints what the variable SAYS holds."""
    (tmp_path / "session-manager-plugin").write_text(PLUGIN)
    (tmp_path / "session-manager-plugin").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    client = boto3.client("ssm", **KEYS)
    monkeypatch.setattr(Environment, "client", lambda *_: client)
    with Stubber(client) as stubber:
        answer = {"SessionId": "x", "TokenValue": "t", "StreamUrl": "wss://x"}
        asked = {"Target": "sagemaker-cluster:a_b-i-1", "Parameters": {"command": [ANY]},
                 "DocumentName": "AWS-StartNonInteractiveCommand"}  # fmt: skip
        stubber.add_response("start_session", answer, asked)
        stubber.add_response("terminate_session", {"SessionId": "x"})
        yield stubber


def listen() -> str:
    return sessions.run(load("dev"), "sagemaker-cluster:a_b-i-1", ["job.sh", "status"])


def test_a_session_returns_what_the_script_printed(session, monkeypatch):
    monkeypatch.setenv("SAYS", "isomorph-begin\r\n{}\r\n{}\r\n\r\nisomorph-end 0")
    assert listen().split() == ["{}", "{}"]


@pytest.mark.parametrize(
    ("says", "said"),
    [
        (
            "isomorph-begin\r\nisomorph: job 1 runs already\r\n\r\nisomorph-end 1",
            "^job 1 runs already$",
        ),
        ("isomorph-begin\r\n\r\nisomorph-end 3", "^job.sh ended with 3 on the node$"),
        ("bash: command not found", "the node did not answer to job.sh; it said: Exiting session"),
    ],
)
def test_a_session_that_fails_says_what_the_node_said(session, monkeypatch, says, said):
    monkeypatch.setenv("SAYS", says)
    with pytest.raises(UserError, match=said):
        listen()


def test_without_the_plugin_nothing_is_started(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="session-manager-plugin is not on the path"):
        listen()


def test_no_word_can_mean_anything_to_a_shell():
    line = sessions._command(["job.sh", "$(touch /tmp/x)", "'; rm -rf /"])
    assert line.startswith("bash -c 'echo ")
    assert "touch" not in line
    assert line.count("'") == 2


def test_texts_are_uploaded_below_their_digest(tmp_path, monkeypatch):
    with mock_aws():
        s3 = boto3.client("s3", **KEYS)
        s3.create_bucket(Bucket="training")
        monkeypatch.setattr(Environment, "client", lambda *_: s3)
        text = tmp_path / "a.txt"

        def put(content: str, **more: Any) -> tuple[str, str]:
            text.write_text(content)
            given = {"config": "tiny", "texts": [text], "tokenizer": None, **more}
            return upload(load("dev"), "s3://training/data/", **given)

        first, second = put("one"), put("two")
        assert first[0] == "tiny"
        assert first != second
        config = tmp_path / "own.json"
        config.write_text("{}")
        named, data = put("two", config=str(config), tokenizer=text)
        keys = {row["Key"] for row in s3.list_objects_v2(Bucket="training")["Contents"]}
        assert {f"data/{first[1]}/text/a.txt", f"data/{second[1]}/text/a.txt", f"data/{named}",
                f"data/{data}/tokenizer.given", f"data/{data}/text/a.txt"} == keys  # fmt: skip
        with pytest.raises(UserError, match=r"a.txt is empty"):
            put("")
        with pytest.raises(UserError, match="two texts have the same name"):
            put("one", texts=[text, text])
        with pytest.raises(UserError, match="could not be put into none: "):
            upload(load("dev"), "s3://none/", config="tiny", texts=[text] if text.write_text("x")
                   else [], tokenizer=None)  # fmt: skip


def test_a_config_without_a_model_is_refused(tmp_path):
    odd = tmp_path / "odd.json"
    odd.write_text("[]")
    with pytest.raises(UserError, match=r"odd.json is no config; it must be"):
        config_of(str(odd))
    assert config_of("tiny")["model"]["vocab_size"] == 1024
