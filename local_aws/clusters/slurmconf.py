"""What HyperPod's image and HyperPod itself bring of Slurm to the nodes of a cluster."""

import os
import pwd
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from local_aws.slurm import COMMANDS, Slurm

if TYPE_CHECKING:
    from local_aws.clusters.node import Node

_PYTHON = '#!/bin/sh\nexec "$ISOMORPH_ROOT/bin/python3" -EsSB -c '
_IMPORT = 'import os, sys; sys.path.insert(0, os.environ["ISOMORPH_ROOT"] + "/sbin"); '
# The copy that slurmd fetched; on the controller, the file itself.
_CONF = """SLURM_CONF="$ISOMORPH_ROOT/run/slurm/conf/slurm.conf"
[ -f "$SLURM_CONF" ] || SLURM_CONF="$ISOMORPH_ROOT/opt/slurm/etc/slurm.conf"
export SLURM_CONF
"""
# Jobs bring the variables of the node that they were submitted on; on hosts of their own these
# would say what is true of the node that they run on as well.
_TASK_PROLOG = """#!/bin/sh
root="$(dirname "$(dirname "$0")")"
echo "export ISOMORPH_ROOT=$root"
echo "export HOME=$root"
echo "export PATH=$root/bin:/usr/bin:/bin"
echo "unset LD_LIBRARY_PATH"
"""


def programs(name: str, slurm: Slurm | None) -> dict[str, str]:
    """Return Slurm's programs on a node: name -> script.

    Args:
        name: Of the node.
        slurm: Debian's, or None for the stand-in.
    """
    if slurm is None:
        commands = {
            each: f'{_PYTHON}\'{_IMPORT}from slurm.commands import main; sys.exit(main("{each}", '
            f'sys.argv[1:]))\' "$@"\n'
            for each in COMMANDS
        }
        return {
            **commands,
            "slurmctld": f"{_PYTHON}'{_IMPORT}from slurm.controller import run; run()'\n",
            "slurmd": _named(name, f"{_PYTHON}'{_IMPORT}from slurm.daemon import run; run()'\n"),
        }
    run = f"{_PYTHON}'{_IMPORT}from slurm.real import run; run(\"NAME\")'\n"
    stepd = f' -d "{slurm.programs["slurmstepd"]}"' if slurm.root else ""
    return {
        **{each: _wrapper(slurm, each, _CONF) for each in COMMANDS},
        "slurmctld": run.replace("NAME", "slurmctld"),
        "slurmd": _named(name, run.replace("NAME", "slurmd")),
        "slurmctld-wlm": _wrapper(slurm, "slurmctld"),
        "slurmd-wlm": _wrapper(slurm, "slurmd", more=stepd),
        "munged": _wrapper(slurm, "munged"),
        "slurm-task-prolog": _TASK_PROLOG,
    }


def _named(name: str, script: str) -> str:
    return script.replace("exec ", f"export SLURMD_NODENAME={name}\nexec ", 1)


def _wrapper(slurm: Slurm, name: str, before: str = "", more: str = "") -> str:
    libraries = f'export LD_LIBRARY_PATH="{slurm.libraries}"\n' if slurm.root else ""
    return f'#!/bin/sh\n{libraries}{before}exec "{slurm.programs[name]}"{more} "$@"\n'


def slurm_conf(name: str, nodes: Iterable["Node"], slurm: Slurm | None, spool: Path) -> str:
    """Return slurm.conf: the controller, the nodes that compute, their partitions.

    Args:
        name: Of the cluster.
        nodes: Of the cluster.
        slurm: Debian's, which wants to know more than the stand-in.
        spool: The folder that the nodes' daemons share.
    """
    nodes = list(nodes)
    head = next((node for node in nodes if node.slurm_type == "Controller"), None)
    lines = [f"ClusterName={name}"]
    if head:
        # The real slurmctld runs only where the host's own name is.
        host = _host() if slurm else head.name
        lines.append(f"SlurmctldHost={host}({head.address})")
    if head and slurm:
        lines += _daemons(head, slurm, spool)
    parts: dict[str, list[str]] = {}
    for node in nodes:
        if node.slurm_type != "Compute":
            continue
        more = f"NodeHostName={_host()} Port={node.port} CPUs={os.cpu_count() or 1} "
        lines.append(
            f"NodeName={node.name} NodeAddr={node.address} {more if slurm else ''}State=UNKNOWN"
        )
        for part in (node.properties.get("SlurmConfig") or {}).get("PartitionNames") or ["dev"]:
            parts.setdefault(part, []).append(node.name)
    for number, (part, names) in enumerate(parts.items()):
        default = "YES" if number == 0 else "NO"
        lines.append(
            f"PartitionName={part} Nodes={','.join(names)} Default={default} MaxTime=INFINITE"
        )
    return "\n".join(lines)


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _daemons(head: "Node", slurm: Slurm, spool: Path) -> list[str]:
    """Return what lets the daemons of all nodes run on one host, without root or control groups."""
    user = pwd.getpwuid(os.getuid()).pw_name
    given: dict[str, object] = {
        "SlurmctldPort": head.port,
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        # A job that was put back waits until its old credential has expired: 120 s by default.
        "AuthInfo": f"socket={spool / 'munge.socket'},cred_expire=5",
        "SlurmUser": user,
        "SlurmdUser": user,
        "StateSaveLocation": head.folder / "var/spool/slurmctld",
        "SlurmctldPidFile": head.folder / "run/slurmctld.pid",
        "SlurmdPidFile": head.folder / "run/slurmd.pid",  # of each node's own root folder
        "SlurmdSpoolDir": f"{spool}/%n",  # has sockets, whose paths must be short
        # A job that waits for a time, and not for an event, is looked at after 30 s by default.
        "SchedulerParameters": "batch_sched_delay=0,bf_interval=1,sched_interval=1",
        "SlurmdTimeout": 30,
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "MailProg": "/bin/true",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SlurmdParameters": "config_overrides",  # every node has all of the host's processors
        "ReturnToService": 1,
        "DebugFlags": "NO_CONF_HASH",  # each node's copy has its own paths
        "TaskProlog": head.folder / "bin/slurm-task-prolog",
    }
    if slurm.plugins:
        given["PluginDir"] = slurm.plugins
    return [f"{key}={value}" for key, value in given.items()]
