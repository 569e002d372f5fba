"""`slurmctld`: gives nodes to jobs in their order, and notes how each job ended."""

import time
from pathlib import Path

from .store import (
    Record,
    configuration,
    is_up,
    job_path,
    jobs,
    parse,
    read,
    root,
    spool,
    tasks_of,
    write,
)

_PAUSE_S = 0.1
BATCH = "batch"  # the step that the script itself is


def run() -> None:
    """Publish slurm.conf, and serve until the end."""
    path = root() / "opt" / "slurm" / "etc" / "slurm.conf"
    while True:
        published = spool() / "configuration.json"
        now = parse(path)
        if read(published) != now:
            write(published, now)
        for job in jobs():
            if job["state"] == "PENDING":
                _begin(job)
            elif job["state"] in ("RUNNING", "COMPLETING"):
                _look(job)
        time.sleep(_PAUSE_S)


def _begin(job: Record) -> None:
    """Start a job whose nodes are free."""
    busy = {name for other in jobs() if other["state"] == "RUNNING" for name in other["on"]}
    known = configuration()
    partition = known["partitions"][job["partition"]]
    free = [name for name in partition["names"] if is_up(name) and name not in busy]
    if len(free) < job["nodes"]:
        return
    job |= {"state": "RUNNING", "on": free[: job["nodes"]], "steps": 0}
    write(job_path(job["id"]), job)
    environment = {
        **job["environment"],
        **variables(job),
        "SLURM_SUBMIT_DIR": job["directory"],
        "SLURM_NODEID": "0",
    }
    task = {
        "job": job["id"],
        "command": ["/bin/bash", job["script"], *job["arguments"]],
        "environment": environment,
        "directory": job["directory"],
        "output": job["output"],
        "prolog": known["rest"].get("Prolog"),
    }
    write(tasks_of(job["on"][0]) / f"{job['id']}.{BATCH}.json", task)


def variables(job: Record) -> dict[str, str]:
    """Return what Slurm tells every process of a job."""
    names = ",".join(job["on"])
    return {
        "SLURM_JOB_ID": str(job["id"]),
        "SLURM_JOBID": str(job["id"]),
        "SLURM_JOB_NAME": job["name"],
        "SLURM_JOB_PARTITION": job["partition"],
        "SLURM_JOB_NODELIST": names,
        "SLURM_NODELIST": names,
        "SLURM_JOB_NUM_NODES": str(len(job["on"])),
        "SLURM_NNODES": str(len(job["on"])),
        "SLURM_RESTART_COUNT": str(job["restarts"]),
    }


def _look(job: Record) -> None:
    """Note the end of a job; one whose node is gone goes back into the queue."""
    ended = read(_exit(job))
    lost = [name for name in job["on"] if not is_up(name)]
    if ended is None and not lost:
        return
    for name in job["on"]:
        for path in tasks_of(name).glob(f"{job['id']}.*.json"):
            path.unlink(missing_ok=True)  # its slurmd ends what still runs
    if ended is None and job["requeue"]:
        job |= {"state": "PENDING", "on": [], "restarts": job["restarts"] + 1}
    elif ended is None:
        job |= {"state": "NODE_FAIL"}
    else:
        _exit(job).unlink(missing_ok=True)
        told = ended.get("told", "")
        over = "COMPLETED" if ended["code"] == 0 else "CANCELLED" if job["cancelled"] else "FAILED"
        job |= {"state": over, "code": ended["code"], "told": told}
    write(job_path(job["id"]), job)


def _exit(job: Record) -> Path:
    return tasks_of(job["on"][0]) / f"{job['id']}.{BATCH}.exit"


if __name__ == "__main__":
    run()
