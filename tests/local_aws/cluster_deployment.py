"""A stack with a cluster whose nodes run our real lifecycle scripts, and a stand-in for torch."""

import contextlib
import hashlib
import io
import json
import os
import runpy
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from local_aws import daemon
from local_aws.settings import PLUGIN
from tests.local_aws.clusters import BUCKET, cluster, group, put_scripts
from tests.local_aws.conftest import Emulator
from tests.local_aws.templates import Template, attribute, ref, resource
from tests.model_code.lifecycle_node import INSTALLER, wheelhouse

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "model_code" / "moe" / "lifecycle"
NAME = "local-moe-000000"
# What stands for the trainer: it notes what it was started with, and ends as it is told.
TRAINER = """
import argparse, json, os, pathlib, signal, sys, time
words = argparse.ArgumentParser()
for name in ("config", "data", "checkpoints", "steps", "checkpoint-every", "seed"):
    words.add_argument("--" + name)
given = words.parse_args()
folder = pathlib.Path(given.checkpoints)
folder.mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), os._exit(0)))
rank = os.environ.get("SLURM_PROCID")
(folder / f"rank-{rank}.json").write_text(json.dumps([os.getpid(), vars(given), dict(os.environ)]))
print(f"rank {rank} of {os.environ['SLURM_NTASKS']} on {os.environ['SLURMD_NODENAME']}", flush=True)
assert list(pathlib.Path(given.data).glob("*.tokens")), "no shards"
if given.config == "fails":
    sys.exit("train: it fails")
time.sleep(float(given.steps))
"""
# In the place of torch's: it starts the module that it is given, once.
LAUNCHER = """
import runpy, sys
at = sys.argv.index("-m")
sys.argv = sys.argv[at + 1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
SHARDS = """
import os, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
if out.name.startswith("slow"):
    print(os.getpid(), flush=True)
    time.sleep(600)
out.mkdir(parents=True)
(out / "train-00000.tokens").write_bytes(b"1")
print("sharded", [pathlib.Path(word).name for word in sys.argv[1:sys.argv.index("--out")]])
"""


def zipped(files: Mapping[str, str | bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def code(**changed: str) -> bytes:
    files = {
        f"model_code/moe/lifecycle/{path.name}": path.read_text() for path in SCRIPTS.glob("*.sh")
    }
    inside = ("model_code", "model_code/moe", "model_code/moe/train", "torch", "torch/distributed")
    files |= {f"{name}/__init__.py": "" for name in inside}
    return zipped(
        {
            **files,
            "model_code/moe/train/requirements.txt": "",
            INSTALLER: (ROOT / INSTALLER).read_text(),
            "model_code/moe/train/__main__.py": TRAINER,
            "model_code/moe/train/shards.py": SHARDS,
            "torch/distributed/run.py": LAUNCHER,
            **changed,
        }
    )


def plugin_shows(session: str) -> str:
    """Return what the session manager's plugin shows of a session, run in this process."""
    shown = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(shown):
        assert runpy.run_path(str(PLUGIN))["main"]([session]) == 0
    shown.seek(0)
    return shown.read()


class Deployment:
    """A stack with a cluster, as the project's own has one."""

    def __init__(self, emulator: Emulator, name: str = NAME, **changed: str) -> None:
        self.emulator, self.name, self.code = emulator, name, code(**changed)
        self.wheels = zipped(wheelhouse())
        self.settings: dict[str, Any] = {
            "environment": "local", "region": "us-east-1", "cluster": name, "model": "tiny-moe",
            "metric_namespace": "Isomorph/moe-training", "parameter": f"/{name}/training",
            "code": f"s3://{BUCKET}/{name}/code.zip", "python": "python3",
            "code_sha256": hashlib.sha256(self.code).hexdigest(),
            "wheelhouse": f"s3://{BUCKET}/{name}/wheels.zip",
            "wheelhouse_sha256": hashlib.sha256(self.wheels).hexdigest(),
            "groups": {
                "controller": {"role": "controller", "partition": "controller", "devices": 1},
                "workers": {"role": "workers", "partition": "dev", "devices": 1},
            },
        }  # fmt: skip
        self.scripts = {path.name: path.read_text() for path in SCRIPTS.glob("*.sh")}
        self.workers = 2

    def template(self, uri: str) -> Template:
        bought = {
            "CapacityRequirements": {"OnDemand": {}},
            "NetworkInterface": {"InterfaceType": "efa"},
        }
        workers = group("workers", uri, self.workers, **bought)
        made = cluster(self.name, group("controller", uri), workers)
        lustre = {"dns_name": "${Lustre.DNSName}", "mount_name": "${Lustre.LustreMountName}"}
        told = {"log_group": "${Logs}", "data_bucket": "${Data}",
                "lustre": {**lustre, "mount_path": "/fsx"}}  # fmt: skip
        events = {"Events": ["NEW", "CHANGED", "DELETED"]}
        made["Resources"] |= {
            "Logs": resource("Logs::LogGroup", LogGroupName=f"/{self.name}"),
            "Data": resource("S3::Bucket"),
            "Lustre": resource("FSx::FileSystem", FileSystemType="LUSTRE"),
            "Link": resource(
                "FSx::DataRepositoryAssociation",
                FileSystemId=ref("Lustre"),
                FileSystemPath="/data",
                DataRepositoryPath={"Fn::Sub": "s3://${Data}/data/"},
                S3={"AutoImportPolicy": events, "AutoExportPolicy": events},
            ),
            "Told": resource(
                "SSM::Parameter",
                Name=self.settings["parameter"],
                Type="String",
                Value={"Fn::Sub": json.dumps(told)},
            ),
        }
        made["Resources"]["Cluster"]["DependsOn"] = ["Told", "Logs"]
        made["Outputs"] = {
            "Arn": {"Value": attribute("Cluster", "ClusterArn")},
            "Data": {"Value": ref("Data")},
        }
        return made

    def put(self) -> str:
        s3 = self.emulator.client("s3")
        s3.create_bucket(Bucket=BUCKET)
        s3.put_object(Bucket=BUCKET, Key=f"{self.name}/code.zip", Body=self.code)
        s3.put_object(Bucket=BUCKET, Key=f"{self.name}/wheels.zip", Body=self.wheels)
        files = {**self.scripts, "settings.json": json.dumps(self.settings)}
        return put_scripts(self.emulator, f"lifecycle/{self.name}", files)

    def create(self) -> str:
        self.emulator.begin(self.name, self.template(self.put()))
        return self.emulator.settled(self.name, 120)

    def change(self) -> str:
        """Update the stack to as many workers as are wanted now."""
        uri = f"s3://{BUCKET}/lifecycle/{self.name}"
        self.emulator.begin(self.name, self.template(uri), update=True)
        return self.emulator.settled(self.name, 120)

    def nodes(self) -> list[dict[str, Any]]:
        found = self.emulator.running.nodes()
        return [row for row in found if row["cluster"] == self.name]

    def node(self, wanted: str) -> Path:
        return next(Path(row["folder"]) for row in self.nodes() if row["group"] == wanted)

    def run(self, command: str, *, group: str = "controller", cli: bool = False) -> str:
        """Run a command on a node through Session Manager, and return what it printed."""
        sagemaker = self.emulator.client("sagemaker")
        arn = sagemaker.describe_cluster(ClusterName=self.name)["ClusterArn"]
        rows = sagemaker.list_cluster_nodes(ClusterName=self.name)["ClusterNodeSummaries"]
        node = next(row["InstanceId"] for row in rows if row["InstanceGroupName"] == group)
        asked = {
            "Target": f"sagemaker-cluster:{arn.rpartition('/')[2]}_{group}-{node}",
            "DocumentName": "AWS-StartNonInteractiveCommand",
            "Parameters": {"command": [command]},
        }
        if cli:
            words = [str(daemon.AWS_CLI), "ssm", "start-session", "--cli-input-json"]
            done = subprocess.run(
                [*words, json.dumps(asked)],
                env={**os.environ, **daemon.environment(self.emulator.running)},
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            shown = done.stdout
        else:  # what the CLI starts, without the start of two processes
            session = self.emulator.client("ssm").start_session(**asked)
            shown = plugin_shows(json.dumps(session, default=str))
        return shown.split("\n", 2)[2].rpartition("\n\nExiting session")[0]

    def job(self, *words: str) -> list[dict[str, Any]]:
        script = "/opt/isomorph/code/model_code/moe/lifecycle/job.sh"
        said = self.run(f"bash -c 'bash \"$ISOMORPH_ROOT{script}\" {' '.join(words)}'")
        try:
            return [json.loads(line) for line in said.splitlines() if line]
        except ValueError:
            return [{"said": said}]

    def sinfo(self, *, cli: bool = False) -> list[str]:
        """Return a line for each node in Slurm: partition, name, state."""
        said = self.run("bash -c 'sinfo --Node --noheader --format \"%P %N %T\"'", cli=cli)
        return sorted(line.strip() for line in said.splitlines() if line)

    def up(self) -> int:
        """Return how many nodes wait for jobs."""
        return sum(line.endswith(" idle") for line in self.sinfo())

    def submit(
        self, name: str, *, steps: str, config: str = "tiny", nodes: int = 2, data: str = "text"
    ) -> int:
        words = {
            **{"CONFIG": config, "STEPS": steps, "DATA": data, "TEXTS": "0", "VOCABULARY": "512"},
            **{"HELD_OUT": "0", "RANKS": "1", "RESTARTS": "0", "CHECKPOINT_EVERY": "5"},
            **{"EXPERT_PARALLEL": "0", "BATCH": "0", "SEED": "0", "PEAK_TFLOPS": "0"},
        }
        given = [f"JOB_{key}={value}" for key, value in words.items()]
        [job] = self.job("start", name, str(nodes), *given)
        return int(job.get("job", 0)) or pytest.fail(str(job))

    def state(self, job: int) -> str:
        [row] = [row for row in self.job("status") if row["job"] == job]
        return str(row["state"])
