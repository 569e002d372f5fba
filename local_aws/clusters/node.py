"""One node of a cluster: a machine whose first program is the cluster's lifecycle script."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_aws.clusters import slurm as image
from local_aws.clusters import slurmconf
from local_aws.machines.machine import Machine, free_port
from local_aws.slurm import Slurm

SCRIPTS = "opt/ml/lifecycle"  # where the files of SourceS3Uri are put; AWS does not tell where
RESOURCES = "opt/ml/config/resource_config.json"
# The commands that a lifecycle script needs a kernel or root for.
_MOUNT = """#!/bin/sh
# mount -t lustre [-o OPTIONS] DNS@tcp:/NAME PATH: the folder that plays the file system.
fail() { echo "mount.lustre: mount $what at $where failed: $1" >&2; exit 2; }
for word; do what="$where"; where="$word"; done
folder="$ISOMORPH_ROOT/dev/lustre/${what%%@*}"
[ -d "$folder" ] || fail "no such file system"
[ ! -d "$where" ] || rmdir "$where" || fail "the folder is not empty"
ln -s "$(readlink "$folder")" "$where" || fail "no such folder"
echo "$what $where lustre rw 0 0" >>"$ISOMORPH_ROOT/proc/mounts"
"""
_UNIT = """[Unit]
Description={description}

[Service]
ExecStart={command}
Restart=on-failure
RestartSec=1
"""


@dataclass
class Node:
    """A node.

    Args:
        machine: Its folder and processes.
        group: Name of its instance group.
        properties: Of that group.
        name: As a host, such as ip-127-1-0-2.
        address: On the loopback network.
        launched: When it was started, in seconds since 1970.
    """

    machine: Machine
    group: str
    properties: Mapping[str, Any]
    name: str
    address: str
    launched: float

    @property
    def instance_id(self) -> str:
        """Such as i-0123456789abcdef0."""
        return self.machine.instance_id

    @property
    def folder(self) -> Path:
        """Its root folder."""
        return self.machine.folder

    @property
    def port(self) -> int:
        """Where Slurm's daemon listens, if it is the real one: all nodes share one host."""
        return self.machine.port

    @property
    def status(self) -> str:
        """How HyperPod calls its state."""
        if self.machine.boot_code is None:
            return "Pending" if self.machine.running else "Failure"
        return "Running" if self.machine.boot_code == 0 and self.machine.running else "Failure"

    @property
    def slurm_type(self) -> str:
        """Controller, Login or Compute."""
        return str((self.properties.get("SlurmConfig") or {}).get("NodeType", "Compute"))

    def reason(self) -> str:
        """Return why its lifecycle script failed, in the script's own words."""
        told = self.machine.reason()
        code = self.machine.boot_code
        return told.removeprefix("isomorph: ") if told else f"it ended with exit code {code}"

    def summary(self) -> dict[str, Any]:
        """Return the row of ListClusterNodes."""
        failed = self.status == "Failure"
        return {
            "InstanceGroupName": self.group,
            "InstanceId": self.instance_id,
            "InstanceType": self.properties["InstanceType"],
            "LaunchTime": self.launched,
            "InstanceStatus": {
                "Status": self.status,
                "Message": self.reason() if failed else "",
            },
            "PrivateDnsHostname": f"{self.name}.ec2.internal",
        }

    def prepare(self, spool: Path, file_systems: Mapping[str, Path]) -> None:
        """Lay out what the node's image and HyperPod bring, before it boots.

        Args:
            spool: Folder in which the cluster's Slurm daemons meet.
            file_systems: Folder of each file system that the node may mount, by DNS name.
        """
        root = self.machine.folder
        for name in ("proc", "dev/lustre", "opt/slurm/etc", "etc/systemd/system", "var/spool"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "proc" / "mounts").touch()
        (root / "var" / "spool" / "slurm").symlink_to(spool)
        for dns, folder in file_systems.items():
            (root / "dev" / "lustre" / dns).symlink_to(folder)
        for daemon, description in (("slurmctld", "controller"), ("slurmd", "node")):
            unit = _UNIT.format(
                description=f"Slurm {description} daemon",
                command=f"{root / 'bin' / daemon} -D $SLURMD_OPTIONS",
            )
            (root / "etc" / "systemd" / "system" / f"{daemon}.service").write_text(unit)
        for storage in self.properties.get("InstanceStorageConfigs") or []:
            if lustre := storage.get("FsxLustreConfig"):
                self._mount(lustre, file_systems)

    def _mount(self, lustre: Mapping[str, Any], file_systems: Mapping[str, Path]) -> None:
        root, path = self.machine.folder, str(lustre.get("MountPath", "/fsx"))
        where = root / path.strip("/")
        if lustre["DnsName"] not in file_systems:
            raise ValueError(f"there is no file system {lustre['DnsName']!r} to mount at {path}")
        where.parent.mkdir(parents=True, exist_ok=True)
        where.symlink_to(file_systems[lustre["DnsName"]])
        line = f"{lustre['DnsName']}@tcp:/{lustre['MountName']} {where} lustre rw 0 0\n"
        with (root / "proc" / "mounts").open("a") as mounts:
            mounts.write(line)

    def write_resources(self, config: Mapping[str, Any]) -> None:
        """Tell the node which nodes the cluster has."""
        path = self.machine.folder / RESOURCES
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=2))

    def write_slurm(self, lines: str) -> None:
        """Write slurm.conf as HyperPod does; what scripts have included stays included."""
        path = self.machine.folder / "opt" / "slurm" / "etc" / "slurm.conf"
        old = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in old if line.startswith("Include ")]
        path.write_text("\n".join([lines.rstrip(), *kept]) + "\n")


def programs(name: str, address: str, slurm: Slurm | None) -> dict[str, str]:
    """Return the commands of a node that this host lacks, or may not be asked for."""
    return {
        **slurmconf.programs(name, slurm),
        "hostname": f'#!/bin/sh\ncase "$1" in -I) echo {address} ;; *) echo {name} ;; esac\n',
        "modprobe": "#!/bin/sh\n# mount plays the modules' part\n",
        "mount": _MOUNT,
    }


def make(
    *,
    instance_id: str,
    folder: Path,
    group: str,
    properties: Mapping[str, Any],
    name: str,
    address: str,
    launched: float,
    environment: Mapping[str, str],
    slurm: Slurm | None,
) -> Node:
    """Return a node that has not been booted."""
    entry = properties["LifeCycleConfig"].get("OnCreate") or ""
    machine = Machine(
        instance_id=instance_id,
        folder=folder / name,
        port=free_port(),
        user_data=f'#!/bin/bash\ncd "$ISOMORPH_ROOT/{SCRIPTS}" && exec bash "./{entry}"\n',
        environment=environment,
        programs=programs(name, address, slurm),
        packages=(Path(image.__file__).parent,),
    )
    return Node(machine, group, properties, name, address, launched)
