"""`slurmd`: runs on its node what the controller and `srun` ask for, each under a keeper."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from .store import Record, read, root, spool, tasks_of, write

_PAUSE_S = 0.1
# These say what a node is, not what a job wants: a job has those of the node that it runs on.
_OF_THE_NODE = ("PATH", "HOME", "ISOMORPH_ROOT", "SLURM_CONF", "AWS_EC2_METADATA_SERVICE_ENDPOINT")


class Daemon:
    """One node's.

    Args:
        name: Of the node, as slurm.conf has it.
    """

    def __init__(self, name: str) -> None:
        self._name, self._folder = name, tasks_of(name)
        self._kept: dict[str, subprocess.Popen[bytes]] = {}
        self._prologued: set[int] = set()

    def run(self) -> None:
        """Serve until the end."""
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            (spool() / "nodes" / self._name / "alive").touch()
            wanted = {path.name.removesuffix(".json"): path for path in self._folder.glob("*.json")}
            for key, path in wanted.items():
                if key not in self._kept and not (self._folder / f"{key}.exit").exists():
                    self._start(key, path)
            for key in [*self._kept]:
                self._step(key, wanted=key in wanted)
            time.sleep(_PAUSE_S)

    def _start(self, key: str, path: Path) -> None:
        task = read(path)
        if task is None:  # withdrawn in this moment
            return
        if said := self._prolog(task):
            write(self._folder / f"{key}.exit", {"code": 1, "told": said})
            return
        own = {name: os.environ[name] for name in _OF_THE_NODE if name in os.environ}
        environment = {**task["environment"], **own, "SLURMD_NODENAME": self._name}
        environment["SLURM_CPUS_ON_NODE"] = str(os.cpu_count() or 1)
        with open(task["output"], "ab") as output:
            self._kept[key] = subprocess.Popen(  # noqa: S603 - what a job of this cluster runs
                [
                    sys.executable,
                    "-EsSB",
                    str(Path(__file__).with_name("keeper.py")),
                    *task["command"],
                ],
                env=environment,
                cwd=task["directory"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # it outlives this group, to end what it has started
            )

    def _prolog(self, task: Record) -> str | None:
        """Run the prolog before the first task of a job, and return why the job may not begin."""
        prolog, job = task.get("prolog"), int(task["job"])
        if not prolog or job in self._prologued:
            return None
        # slurm.conf has the controller's path; the same file is at the same place of each node.
        own = root() / "opt" / "slurm" / "etc" / Path(prolog).name
        told = {**os.environ, "SLURM_JOB_ID": str(job)}
        done = subprocess.run([str(own)], env=told, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            return f"the prolog ended with {done.returncode} on {self._name}: {done.stderr.strip()}"
        self._prologued.add(job)
        return None

    def _step(self, key: str, *, wanted: bool) -> None:
        keeper = self._kept[key]
        stdin: IO[bytes] | None = keeper.stdin
        if keeper.poll() is None:
            if not wanted and stdin and not stdin.closed:
                stdin.close()  # the keeper ends all that it has started
            order = self._folder / f"{key}.signal"
            if stdin and not stdin.closed and (told := read(order)):
                order.unlink(missing_ok=True)
                stdin.write(f"{told['signal']}\n".encode())
                stdin.flush()
            return
        del self._kept[key]
        if wanted:
            write(self._folder / f"{key}.exit", {"code": keeper.returncode})


def run() -> None:
    """Serve for the node whose name the host has."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    Daemon(os.uname().nodename if "SLURMD_NODENAME" not in os.environ else
           os.environ["SLURMD_NODENAME"]).run()  # fmt: skip


if __name__ == "__main__":
    run()
