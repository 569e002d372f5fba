"""The folder that the daemons and commands share: jobs, tasks, nodes; each file written whole."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

Record = dict[str, Any]
ACTIVE = ("PENDING", "RUNNING", "COMPLETING")
_DEAD_S = 10.0  # a slurmd that was silent for so long is down


class SlurmError(Exception):
    """What a person asked for and does not get."""


def root() -> Path:
    """Return the root folder of the node that this runs on."""
    return Path(os.environ["ISOMORPH_ROOT"])


def spool() -> Path:
    """Return the folder that all nodes of the cluster see."""
    return root() / "var" / "spool" / "slurm"


def write(path: Path, record: Record) -> None:
    """Write a record whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps(record))
    new.replace(path)


def read(path: Path) -> Record | None:
    """Return a record, or None when there is none."""
    try:
        found: Record = json.loads(path.read_text())
        return found
    except FileNotFoundError:
        return None


def configuration() -> dict[str, Any]:
    """Return what slurm.conf says, its Includes too: nodes, partitions, and the rest by name.

    Raises:
        SlurmError: there is none yet; the controller's daemon publishes it when it starts.
    """
    found = read(spool() / "configuration.json")
    if found is None:
        raise SlurmError("no slurm.conf: slurmctld has not started on the controller")
    return found


def parse(path: Path) -> dict[str, Any]:
    """Read a slurm.conf: names of nodes are given one by one here, without brackets."""
    found: dict[str, Any] = {"nodes": {}, "partitions": {}, "rest": {}}
    for line in path.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if not line:
            continue
        if line.lower().startswith("include "):
            more = parse(path.parent / line.split(None, 1)[1])
            for part, rows in more.items():
                found[part] |= rows
            continue
        pairs = dict(re.findall(r"(\w+)=(\S+)", line))
        if "NodeName" in pairs:
            found["nodes"][pairs["NodeName"]] = pairs
        elif "PartitionName" in pairs:
            found["partitions"][pairs["PartitionName"]] = pairs
        else:
            found["rest"] |= pairs
    for pairs in found["partitions"].values():
        names = pairs["Nodes"]
        pairs["names"] = list(found["nodes"]) if names == "ALL" else names.split(",")
    return found


def jobs() -> list[Record]:
    """Return all jobs, oldest first."""
    found = [read(path) for path in (spool() / "jobs").glob("*.json")]
    return sorted((job for job in found if job), key=lambda job: int(job["id"]))


def job_path(job: int) -> Path:
    """Return where a job's record is."""
    return spool() / "jobs" / f"{job}.json"


def tasks_of(node: str) -> Path:
    """Return the folder with what a node shall run."""
    return spool() / "nodes" / node / "tasks"


def is_up(node: str) -> bool:
    """Tell whether a node's slurmd has been heard lately."""
    try:
        return time.time() - (spool() / "nodes" / node / "alive").stat().st_mtime < _DEAD_S
    except FileNotFoundError:
        return False
