"""sbatch, squeue, scancel, srun, scontrol and sinfo: the words that a training job uses."""

import argparse
import fcntl
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .controller import BATCH, variables
from .store import (
    ACTIVE,
    Record,
    SlurmError,
    configuration,
    is_up,
    job_path,
    jobs,
    read,
    spool,
    tasks_of,
    write,
)

_PAUSE_S = 0.05


class _Words(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SlurmError(f"{message} (not played by this stand-in for Slurm)")


def _submission() -> _Words:
    words = _Words(prog="sbatch", add_help=False, allow_abbrev=False)
    for name in ("--job-name", "--output", "--chdir", "--export", "--partition", "--open-mode"):
        words.add_argument(name)
    for name in ("--parsable", "--exclusive", "--requeue", "--no-requeue"):
        words.add_argument(name, action="store_true")
    words.add_argument("--version", action="store_true")
    words.add_argument("--nodes", type=int)
    words.add_argument("--ntasks-per-node", type=int)
    words.add_argument("rest", nargs=argparse.REMAINDER)
    return words


def sbatch(arguments: Sequence[str]) -> int:
    """Put a batch script into the queue; its own #SBATCH lines count where no option is given."""
    given = _submission().parse_args(arguments)
    if given.version:
        print("a stand-in for Slurm")
        return 0
    if not given.rest:
        raise SlurmError("no batch script was named")
    script = Path(given.rest[0])
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    inside = _submission().parse_args([word for line in lines for word in shlex.split(line)[1:]])
    chosen = {name: value or getattr(inside, name) for name, value in vars(given).items()}
    if chosen["export"] not in (None, "ALL"):
        raise SlurmError(f"--export={chosen['export']} is not played, only ALL")
    known = configuration()["partitions"]
    default = next((name for name, row in known.items() if row.get("Default") == "YES"), None)
    partition, nodes = chosen["partition"] or default, chosen["nodes"] or 1
    if partition not in known:
        raise SlurmError(f"Invalid partition name specified: {partition}")
    if nodes > len(known[partition]["names"]):
        raise SlurmError("Batch job submission failed: Node count specification invalid")
    number = _next_number()
    copy = spool() / "scripts" / f"{number}.sh"
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(script, copy)
    directory = chosen["chdir"] or os.getcwd()
    output = (chosen["output"] or "slurm-%j.out").replace("%j", str(number))
    record = {
        "id": number, "name": chosen["job_name"] or script.name, "state": "PENDING", "on": [],
        "nodes": nodes, "partition": partition, "script": str(copy),
        "arguments": given.rest[1:], "directory": directory,
        "output": str(Path(directory, output)), "environment": dict(os.environ),
        "requeue": not chosen["no_requeue"], "restarts": 0, "cancelled": False,
    }  # fmt: skip
    write(job_path(number), record)
    print(number if given.parsable else f"Submitted batch job {number}")
    return 0


def _next_number() -> int:
    with (spool() / "last").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        number = int(file.read() or 0) + 1
        file.truncate(0)
        file.write(str(number))
        return number


def squeue(arguments: Sequence[str]) -> int:
    """List jobs that wait or run."""
    words = _Words(prog="squeue", add_help=False, allow_abbrev=False)
    words.add_argument("--noheader", "-h", action="store_true")
    words.add_argument("--jobs", "-j")
    words.add_argument("--name", "-n")
    words.add_argument("--format", "-o", default="%i %P %j %T %D %N")
    given = words.parse_args(arguments)
    if not given.noheader:
        print("JOBID PARTITION NAME STATE NODES NODELIST")
    for job in jobs():
        if job["state"] not in ACTIVE or (given.name and job["name"] != given.name):
            continue
        if given.jobs and str(job["id"]) not in given.jobs.split(","):
            continue
        shown = {"%i": job["id"], "%P": job["partition"], "%j": job["name"], "%T": job["state"],
                 "%D": job["nodes"], "%N": ",".join(job["on"])}  # fmt: skip
        line = given.format
        for mark, value in shown.items():
            line = line.replace(mark, str(value))
        print(line)
    return 0


def scancel(arguments: Sequence[str]) -> int:
    """Signal a job's steps, or with --batch the shell of its script; or end the job."""
    words = _Words(prog="scancel", add_help=False, allow_abbrev=False)
    words.add_argument("--signal")
    words.add_argument("--batch", action="store_true")
    words.add_argument("jobs", nargs="+", type=int)
    given = words.parse_args(arguments)
    for number in given.jobs:
        job = read(job_path(number))
        if job is None or job["state"] not in ACTIVE:
            raise SlurmError(f"Kill job error on job id {number}: Invalid job id specified")
        job["cancelled"] = True
        if job["state"] == "PENDING":
            job["state"] = "CANCELLED"
        write(job_path(number), job)
        name = f"SIG{given.signal}" if given.signal else "SIGTERM"
        for node in job["on"]:
            for path in tasks_of(node).glob(f"{number}.*.json"):
                script = path.stem.endswith(f".{BATCH}")
                if given.signal is None or script == given.batch:
                    told = int(signal.Signals[name])
                    write(path.with_suffix(".signal"), {"signal": -told if given.batch else told})
    return 0


def srun(arguments: Sequence[str]) -> int:
    """Run a command once on each node of the job that this is called in."""
    words = _Words(prog="srun", add_help=False, allow_abbrev=False)
    words.add_argument("--nodes", type=int)
    words.add_argument("--ntasks-per-node", type=int, default=1)
    words.add_argument("--kill-on-bad-exit", default="0")
    words.add_argument("command", nargs=argparse.REMAINDER)
    given = words.parse_args(arguments)
    job = read(job_path(int(os.environ.get("SLURM_JOB_ID", "0"))))
    if job is None:
        raise SlurmError("srun is only played inside of a batch job")
    if given.ntasks_per_node != 1 or (given.nodes or len(job["on"])) != len(job["on"]):
        raise SlurmError("only one task on each of the job's nodes is played")
    # scancel --full tells the tasks by itself; this waits until they have ended.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    job = {**job, "steps": job["steps"] + 1}
    write(job_path(job["id"]), job)
    keys = [_task(job, given.command, number) for number in range(len(job["on"]))]
    return _wait(job, keys, bad_exit=given.kill_on_bad_exit != "0")


def _task(job: Record, command: list[str], number: int) -> str:
    step = job["steps"] - 1
    key = f"{job['id']}.{step}"
    own = {
        "SLURM_STEP_ID": str(step), "SLURM_PROCID": str(number), "SLURM_NODEID": str(number),
        "SLURM_LOCALID": "0", "SLURM_NTASKS": str(len(job["on"])),
    }  # fmt: skip
    # A path of this node is the same place of each other node, as on hosts of their own.
    here = os.environ["ISOMORPH_ROOT"]
    there = str(Path(here).parent / job["on"][number])
    inside = {**dict(os.environ), **variables(job), **own}
    task = {
        "job": job["id"],
        "command": [_there(word, here, there) for word in command],
        "environment": inside,
        "directory": _there(os.getcwd(), here, there),
        "output": job["output"],
        "prolog": configuration()["rest"].get("Prolog"),
    }
    write(tasks_of(job["on"][number]) / f"{key}.json", task)
    return key


def _there(word: str, here: str, there: str) -> str:
    return there + word[len(here) :] if word.startswith(f"{here}/") else word


def _wait(job: Record, keys: list[str], *, bad_exit: bool) -> int:
    """Wait for all tasks, and return the highest of their codes."""
    codes: dict[str, int] = {}
    while len(codes) < len(job["on"]):
        for node, key in zip(job["on"], keys, strict=True):
            ended = read(tasks_of(node) / f"{key}.exit")
            if ended is None or node in codes:
                continue
            codes[node] = int(ended["code"])
            if ended.get("told"):
                print(f"srun: error: {node}: {ended['told']}", file=sys.stderr, flush=True)
            if codes[node] and bad_exit:
                for other in job["on"]:
                    (tasks_of(other) / f"{key}.json").unlink(missing_ok=True)
                return codes[node]
        time.sleep(_PAUSE_S)
    for node, key in zip(job["on"], keys, strict=True):
        for suffix in (".json", ".exit"):
            (tasks_of(node) / f"{key}{suffix}").unlink(missing_ok=True)
    return max(codes.values())


def scontrol(arguments: Sequence[str]) -> int:
    """Answer `show hostnames LIST`, `show node NAME` and `reconfigure`."""
    match [word for word in arguments if word not in ("--oneliner", "-o")]:
        case ["show", "hostnames", names]:
            print("\n".join(names.split(",")))
        case ["show", "node", name] if name in configuration()["nodes"]:
            row = configuration()["nodes"][name]
            state = "IDLE" if is_up(name) else "DOWN"
            print(f"NodeName={name} NodeAddr={row['NodeAddr']} State={state}")
        case ["reconfigure"]:
            pass
        case words:
            raise SlurmError(f"scontrol {' '.join(words)} is not played by this stand-in for Slurm")
    return 0


def sinfo(arguments: Sequence[str]) -> int:
    """List the nodes of each partition with their state."""
    words = _Words(prog="sinfo", add_help=False, allow_abbrev=False)
    words.add_argument("--noheader", "-h", action="store_true")
    words.add_argument("--Node", "-N", action="store_true")
    words.add_argument("--format", "-o", default="%P %N %T")
    given = words.parse_args(arguments)
    if not given.noheader:
        print("PARTITION NODE STATE")
    busy = {name for job in jobs() if job["state"] == "RUNNING" for name in job["on"]}
    for partition, row in configuration()["partitions"].items():
        for name in row["names"]:
            state = "down" if not is_up(name) else "allocated" if name in busy else "idle"
            shown = {"%P": f"{partition}*" if row.get("Default") == "YES" else partition,
                     "%N": name, "%T": state}  # fmt: skip
            line = given.format
            for mark, value in shown.items():
                line = line.replace(mark, value)
            print(line)
    return 0


COMMANDS = {
    "sbatch": sbatch, "squeue": squeue, "scancel": scancel, "srun": srun, "scontrol": scontrol,
    "sinfo": sinfo,
}  # fmt: skip


def main(name: str, arguments: Sequence[str]) -> int:
    """Run a command; a mistake is one line, as Slurm's own are."""
    try:
        return COMMANDS[name](arguments)
    except (SlurmError, OSError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
