"""A node for lifecycle scripts: a folder, with stand-ins for what needs root or AWS."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.model_code.conftest import ROOT

SCRIPTS = ROOT / "model_code" / "moe" / "lifecycle"
INSTALLER = "model_code/common/node/install_wheels.sh"
# Each call is noted; while fail.COMMAND holds a number above 0, that many calls fail first.
_NOTE = """#!/bin/bash
name="$(basename "$0")"
echo "$name $*" >>"$ISOMORPH_ROOT/calls"
left="$(cat "$ISOMORPH_ROOT/fail.$name" 2>/dev/null || echo 0)"
if [ "$left" -gt 0 ]; then
  echo $((left - 1)) >"$ISOMORPH_ROOT/fail.$name"
  echo "$name is away" >&2
  exit 1
fi
"""
_AWS = (
    _NOTE
    + """
case "$1 $2" in
  "ssm get-parameter") cat "$ISOMORPH_ROOT/parameter" ;;
  "s3 cp") cp "$ISOMORPH_ROOT/s3/$(basename "$4")" "$5" ;;
  "logs put-log-events")
    for word; do file="${word#file://}"; done
    cat "$file" >>"$ISOMORPH_ROOT/events"
    ;;
esac
"""
)
_MYSQL = _NOTE + 'cat >>"$ISOMORPH_ROOT/sql"\n'
_MOUNT = _NOTE + 'echo "$5 $6 lustre rw 0 0" >>"$ISOMORPH_ROOT/proc/mounts"\n'
_HOSTNAME = (
    '#!/bin/bash\n[ "$1" = -I ] && echo "$(cat "$ISOMORPH_ROOT/address") 172.17.0.1" || echo ip-1\n'
)


def wheelhouse(*, uv_does: str = "exit 0", native: bool = True) -> dict[str, str | bytes]:
    """Return the files of a wheelhouse with nothing to install but a uv that does as it is told."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("uv-0.data/scripts/uv", f"#!/bin/bash\n{uv_does}\n")
    lists: dict[str, str | bytes] = {"requirements-native.txt": ""} if native else {}
    return {"uv-0-py3-none-any.whl": wheel.getvalue(), **lists}


class Node:
    """One node, before its scripts have run."""

    def __init__(self, root: Path, group: str = "workers", kind: str = "ml.r7i.large") -> None:
        self.root = root
        for name in ("bin", "s3", "proc", "opt/ml/config", "opt/slurm/etc", "sys/class",
                     "etc/systemd/system"):  # fmt: skip
            (root / name).mkdir(parents=True)
        self.scripts = root / "opt" / "ml" / "lifecycle"
        shutil.copytree(SCRIPTS, self.scripts)
        for name in ("systemctl", "modprobe", "chown", "nvidia-smi", "openssl"):
            self.program(name, _NOTE)
        own = {"aws": _AWS, "mysql": _MYSQL, "mount": _MOUNT, "hostname": _HOSTNAME}
        for name, script in own.items():
            self.program(name, script)
        (root / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
        (root / "proc/mounts").write_text("")
        address = {"controller": "10.0.0.1", "workers": "10.0.0.2"}[group]
        (root / "address").write_text(address)
        (root / "opt/slurm/etc/slurm.conf").write_text("SlurmctldHost=ip-1(10.0.0.1)\n")
        for daemon in ("slurmctld", "slurmd"):
            unit = f"[Service]\nExecStart=/opt/slurm/sbin/{daemon} -D $SLURMD_OPTIONS\n"
            (root / f"etc/systemd/system/{daemon}.service").write_text(unit)
        self.resources: dict[str, Any] = {
            "ClusterConfig": {"ClusterName": "dev-moe-1"},
            "InstanceGroups": [
                {"Name": name, "InstanceType": kind, "Instances": [
                    {"InstanceName": f"{name}-1", "AgentIpAddress": at, "CustomerIpAddress": at,
                     "InstanceId": f"i-{number:017x}"}]}
                for number, (name, at) in enumerate([("controller", "10.0.0.1"),
                                                     ("workers", "10.0.0.2")])
            ],
        }  # fmt: skip
        self.settings: dict[str, Any] = {
            "region": "us-east-1", "environment": "dev", "cluster": "dev-moe-1", "model": "tiny",
            "orchestrator": "slurm", "parameter": "/isomorph/dev/moe/training",
            "python": "python3", "code": "s3://sagemaker-x/code.zip",
            "wheelhouse": "s3://sagemaker-x/wheels.zip", "accounting": 0,
            "groups": {"controller": {"role": "controller"}, "workers": {"role": "workers"}},
        }  # fmt: skip
        self.told: dict[str, Any] = {
            "log_group": "/dev", "data_bucket": "data",
            "lustre": {"dns_name": "fs-1.fsx.amazonaws.com", "mount_name": "abc",
                       "mount_path": "/fsx"},
        }  # fmt: skip
        installer = (ROOT / INSTALLER).read_text()
        self.asset("code", {"model_code/moe/train/requirements.txt": "", INSTALLER: installer})
        self.asset("wheels", wheelhouse(), "wheelhouse")

    def program(self, name: str, script: str) -> None:
        path = self.root / "bin" / name
        path.write_text(script)
        path.chmod(0o755)

    def asset(
        self, file: str, content: Mapping[str, str | bytes], setting: str | None = None
    ) -> None:
        path = self.root / "s3" / f"{file}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.settings[f"{setting or file}_sha256"] = digest

    def run(self, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run on_create.sh as HyperPod does."""
        (self.scripts / "settings.json").write_text(json.dumps(self.settings))
        (self.root / "parameter").write_text(json.dumps(self.told))
        config = self.root / "opt/ml/config/resource_config.json"
        config.write_text(json.dumps(self.resources))
        env = {
            "PATH": f"{self.root}/bin:/usr/bin:/bin", "HOME": str(self.root),
            "ISOMORPH_ROOT": str(self.root), "ISOMORPH_BACKOFF_S": "0",
            "ISOMORPH_SLURM_CONF_S": "1", **variables,
        }  # fmt: skip
        return subprocess.run(
            ["bash", "on_create.sh"], cwd=self.scripts, env=env, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    def fails(self, **variables: str) -> str:
        """Run, and return the reason of the failure: the last line."""
        done = self.run(**variables)
        assert done.returncode == 1, done.stdout + done.stderr
        last = done.stdout.rstrip().splitlines()[-1]
        assert last.startswith("isomorph: "), done.stdout + done.stderr
        return last

    def calls(self, command: str) -> list[str]:
        path = self.root / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(f"{command} ")]

    def fail(self, command: str, times: int) -> None:
        (self.root / f"fail.{command}").write_text(str(times))

    def text(self, name: str) -> str:
        return (self.root / name).read_text()
