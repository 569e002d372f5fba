"""The lifecycle scripts where things go wrong, and where they run again."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.model_code.conftest import ROOT
from tests.model_code.lifecycle_node import SCRIPTS, Node, wheelhouse

CALLS = re.compile(r"\baws (\w+) ([a-z-]+)")


@pytest.fixture
def worker(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def controller(tmp_path: Path) -> Node:
    return Node(tmp_path, "controller")


@pytest.fixture(scope="module")
def without_slurm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A controller that knows of a job, and whose Slurm does not answer."""
    node = Node(tmp_path_factory.mktemp("controller"), "controller")
    assert node.run().returncode == 0
    (node.root / "fsx/jobs/7.json").write_text('{"job": 7}')
    node.program("squeue", "#!/bin/bash\necho 'slurm_load_jobs error: away' >&2; exit 1\n")
    return node.root


def test_a_worker_is_set_up_and_the_second_time_nothing_is_done_again(worker):
    done = worker.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert worker.text("proc/mounts").startswith("fs-1.fsx.amazonaws.com@tcp:/abc ")
    assert len(worker.calls("mount")) == 1
    assert len([call for call in worker.calls("aws") if "s3 cp" in call]) == 2
    assert "--conf-server 10.0.0.1" in worker.text("etc/systemd/system/slurmd.service")
    before = {
        path: path.read_bytes()
        for name in ("etc/fstab", "etc/systemd/system/slurmd.service", "etc/isomorph/cluster.env")
        for path in [worker.root / name]
    }
    assert worker.run().returncode == 0
    assert {path: path.read_bytes() for path in before} == before
    assert len(worker.calls("mount")) == 1
    assert len([call for call in worker.calls("aws") if "s3 cp" in call]) == 2
    assert worker.calls("systemctl")[-2:] == ["systemctl enable --now slurmd",
                                              "systemctl is-active --quiet slurmd"]  # fmt: skip
    sent = [row for line in worker.text("events").splitlines() for row in json.loads(line)]
    told = [json.loads(row["message"]) for row in sent][: len(sent) // 2]
    assert [row["phase"] for row in told if row["state"] == "done"] == [
        "check", "file-system", "code", "slurm", "all",
    ]  # fmt: skip


def test_what_fails_now_and_then_is_tried_again(worker):
    worker.fail("aws", 2)  # the parameter, twice
    worker.fail("mount", 3)
    assert worker.run().returncode == 0
    assert len(worker.calls("mount")) == 4


def test_what_always_fails_is_given_up_with_the_reason(worker):
    worker.fail("mount", 99)
    assert worker.fails() == (
        "isomorph: file-system, after 5 tries: cannot mount fs-1.fsx.amazonaws.com@tcp:/abc at "
        f"{worker.root}/fsx; its security group must let ports 988 and 1018-1023 in"
    )
    assert len(worker.calls("mount")) == 5
    assert '\\"state\\": \\"failed\\"' in worker.text("events")


def test_a_node_that_failed_halfway_goes_on_the_next_time(worker):
    worker.fail("systemctl", 99)
    assert "slurm, after 5 tries: systemctl cannot read the units" in worker.fails()
    worker.fail("systemctl", 0)
    assert worker.run().returncode == 0
    assert len([call for call in worker.calls("aws") if "s3 cp" in call]) == 2


def test_cloudwatch_being_away_keeps_no_node_from_coming_up(worker):
    worker.program("aws", (worker.root / "bin/aws").read_text().replace(
        '"logs put-log-events")', '"logs put-log-events") exit 1 ;; "never")'))  # fmt: skip
    done = worker.run()
    assert done.returncode == 0
    assert "phase markers did not reach /dev" in done.stdout


def test_an_altered_asset_is_refused_at_once(worker):
    worker.settings["code_sha256"] = "0" * 64
    said = worker.fails()
    assert f"code: s3://sagemaker-x/code.zip does not have the sha256 {'0' * 64}" in said
    assert len([call for call in worker.calls("aws") if "s3 cp" in call]) == 1
    assert not (worker.root / "opt/isomorph/code").exists()


def test_an_altered_asset_leaves_what_was_there(worker):
    assert worker.run().returncode == 0
    worker.settings["code_sha256"] = "0" * 64
    worker.fails()
    assert (worker.root / "opt/isomorph/code/model_code").is_dir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda n: n.settings.pop("code"),
         "ISOMORPH_CODE_URL is neither in settings.json nor in the parameter /isomorph/dev"),
        (lambda n: n.settings.update(code="s3://x/$(touch y)"),
         "settings.json has 's3://x/$(touch y)' for ISOMORPH_CODE_URL; allowed are letters"),
        (lambda n: n.told.update(log_group="a b"),
         "the parameter /isomorph/dev/moe/training has 'a b' for ISOMORPH_LOG_GROUP"),
        (lambda n: n.told.update(lustre=None),
         "ISOMORPH_FSX_PATH is neither in settings.json nor in the parameter"),
        (lambda n: n.fail("aws", 99),
         "cannot read the parameter '/isomorph/dev/moe/training' after 5"),
        (lambda n: (n.root / "address").write_text("10.9.9.9"),
         "none of this node's addresses, 10.9.9.9, 172.17.0.1, is in"),
        (lambda n: n.resources.pop("InstanceGroups"), "does not fit settings.json: KeyError"),
        (lambda n: n.settings["groups"].pop("workers"),
         "does not fit settings.json: KeyError: 'workers'"),
        (lambda n: n.settings["groups"]["controller"].update(role="workers"),
         "has no instance group whose role in settings.json is controller"),
        (lambda n: n.resources["InstanceGroups"][1]["Instances"][0].update(InstanceId="i-1;ls"),
         "has 'i-1;ls' where the node_id should be"),
        (lambda n: (n.root / "proc/mounts").write_text(f"fs@tcp:/xyz {n.root}/fsx lustre rw\n"),
         "fsx holds fs@tcp:/xyz, and should hold fs-1.fsx.amazonaws.com@tcp:/abc"),
        (lambda n: n.settings.update(wheelhouse=None), "ISOMORPH_WHEELHOUSE_URL is missing"),
        (lambda n: n.settings.update(python="python9"), "there is no python9 on this image"),
        (lambda n: n.program("df", "#!/bin/bash\necho; echo d 9 9 1024 9 9\n"),
         "opt has 1 MiB free, it needs 2 GiB"),
        (lambda n: (n.root / "etc/systemd/system/slurmd.service").unlink(), "this image has no "),
        (lambda n: n.asset("wheels", wheelhouse(uv_does="exit 2"), "wheelhouse"),
         "cannot be installed"),
        (lambda n: n.asset("wheels", wheelhouse(native=False), "wheelhouse"),
         "of this image lacks torch, numpy, safetensors or tokenizers"),
    ],
)  # fmt: skip
def test_a_node_that_cannot_be_set_up_says_why(worker, spoil, said):
    spoil(worker)
    assert said in worker.fails()


def test_a_full_disk_leaves_nothing_half_unpacked(worker):
    full = (worker.root / "bin/aws").read_text().replace(
        '"s3 cp") cp', '"s3 cp") echo "No space left on device" >&2; exit 1; cp'
    )  # fmt: skip
    worker.program("aws", full)
    said = worker.fails()
    assert "cannot fetch s3://sagemaker-x/code.zip (" in said
    assert "free in " in said
    assert not list((worker.root / "opt/isomorph").glob("code*/*"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ml.p5e.48xlarge", "no network card with EFA"),
        ("ml.g5.xlarge", "nvidia-smi lists no GPU"),
        ("ml.trn1.2xlarge", "neuron-ls finds no Trainium"),
    ],
)
def test_a_worker_without_what_its_type_promises_fails(tmp_path, kind, said):
    node = Node(tmp_path, kind=kind)
    assert said in node.fails()


def test_a_worker_with_its_cards_and_gpus_passes_the_check(tmp_path):
    node = Node(tmp_path, kind="ml.p5e.48xlarge")
    (tmp_path / "sys/class/infiniband/efa_0").mkdir(parents=True)
    node.program("nvidia-smi", "#!/bin/bash\necho GPU 0\n")
    done = node.run()
    assert done.returncode == 0, done.stdout
    assert "1 network cards with EFA" in done.stdout


def test_the_controller_keeps_accounts_with_a_password_that_nobody_sees(controller):
    controller.settings["accounting"] = 1
    controller.program("openssl", "#!/bin/bash\necho 5ecret\n")
    for _ in range(2):
        done = controller.run()
        assert done.returncode == 0, done.stdout
        assert "5ecret" not in done.stdout + controller.text("var/log/provision/provisioning.log")
        assert "5ecret" not in controller.text("calls") + controller.text("events")
    assert controller.text("sql").count("CREATE USER IF NOT EXISTS") == 1
    conf = controller.root / "opt/slurm/etc/slurmdbd.conf"
    assert (conf.stat().st_mode & 0o777, "StoragePass=5ecret" in conf.read_text()) == (0o600, True)
    included = controller.text("opt/slurm/etc/slurm.conf").splitlines()
    assert len(included) == len(set(included)) == 3
    assert controller.text("opt/slurm/etc/accounting.conf").count("AccountingStorageType") == 1


def test_the_controller_waits_for_its_slurm_conf(controller):
    (controller.root / "opt/slurm/etc/slurm.conf").write_text("SlurmctldHost=other(10.0.0.9)\n")
    said = controller.fails(ISOMORPH_TRIES="1")
    assert "does not name this controller, 10.0.0.1, after 1 s" in said


def test_the_controller_keeps_the_scheduler_parameters_that_hyperpod_chose(controller):
    with (controller.root / "opt/slurm/etc/slurm.conf").open("a") as file:
        file.write("SchedulerParameters=defer,max_rpc_cnt=9\n")
    for _ in range(2):
        assert controller.run().returncode == 0
    lines = controller.text("opt/slurm/etc/isomorph.conf").splitlines()
    assert "SchedulerParameters=defer,max_rpc_cnt=9,nohold_on_prolog_fail" in lines
    assert "EnforcePartLimits=ALL" in lines


def test_the_prolog_needs_no_variable_of_its_caller(worker):
    assert worker.run().returncode == 0
    prolog = worker.root / "opt/slurm/etc/prolog.sh"
    assert os.access(prolog, os.X_OK)

    def code() -> int:  # Slurm hands over its own variables alone, not even a PATH
        return subprocess.run([str(prolog)], env={"SLURM_JOB_ID": "1"}, check=False).returncode

    assert code() == 0
    (worker.root / "opt/isomorph/venv/bin/python").unlink()
    assert code() == 1


def test_on_eks_a_node_is_only_checked(worker):
    worker.settings["orchestrator"] = "eks"
    worker.settings["groups"] = {name: {"role": "workers"} for name in worker.settings["groups"]}
    done = worker.run()
    assert done.returncode == 0, done.stdout
    assert not worker.calls("mount")
    assert not worker.calls("systemctl")


@pytest.mark.parametrize("words", [("start", "run", "1", "JOB_STEPS=1"), ("logs", "7", "0"),
                                   ("stop", "7"), ("status",)])  # fmt: skip
def test_slurm_being_away_is_said_and_is_no_state_of_a_job(without_slurm, words):
    env = {"PATH": f"{without_slurm}/bin:/usr/bin:/bin", "ISOMORPH_ROOT": str(without_slurm)}
    done = subprocess.run(
        ["bash", str(SCRIPTS / "job.sh"), *words], env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == "isomorph: Slurm does not answer: slurm_load_jobs error: away\n"


def test_the_readme_lists_every_script_and_every_call_of_aws():
    rows = (SCRIPTS / "README.md").read_text().splitlines()
    table = {name: row for row in rows for name in re.findall(r"^\| `([a-z_]+\.sh)`", row)}
    assert set(table) == {path.name for path in SCRIPTS.glob("*.sh")}
    for path in SCRIPTS.glob("*.sh"):
        called = {" ".join(call) for call in CALLS.findall(path.read_text())}
        listed = set(re.findall(r"`((?:ssm|logs|s3) [a-z-]+)`", table[path.name].split("|")[4]))
        assert listed - {"s3 get-object"} == called, path.name


def test_every_script_is_whole():
    for path in SCRIPTS.glob("*.sh"):
        assert path.read_text().startswith("#!/bin/bash\n"), path.name
        assert "set -Eeuo pipefail" in path.read_text(), path.name
    assert not list((ROOT / "model_code" / "moe" / "lifecycle").glob("*.env"))
