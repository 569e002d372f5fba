"""Runs what CI runs, part by part, and says what each took: `python -m tests [PART ...]`.

Tests wait for a part of their time: three workers keep two cores busy, parts start while others
still run, and what waits most of its time takes no worker. What a part prints is shown when it has
ended. Its CPU seconds are those of all that it started, daemons too (on Linux), however busy the
machine was meanwhile.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.prefix) / "bin"
PYTEST = [sys.executable, "-m", "pytest", "-m"]
TYPED = [
    *("app.py", "config", "constructs_lib", "stacks", "planner", "model_code"),
    *("local_aws", "isomorph", "bench"),
]
LEAST_GIB = 4  # of the disk; a first run takes twice as much
WORKERS = len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else 3


@dataclass(frozen=True)
class Part:
    """A command; how many workers it takes at least and at most; the parts that must have ended.

    None is for a command that waits most of its time, and runs beside the others.
    """

    command: list[str]
    least: int = 1
    most: int = 1
    after: tuple[str, ...] = ()

    def with_workers(self, workers: int) -> list[str]:
        """Return the command. tests/conftest.py says which of a part's files go first."""
        if workers <= 1:
            return self.command
        return [*self.command, "-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]


def files(mark: str, without: str = "") -> list[str]:
    """Return the test files that have a mark: to read all of them takes torch and ten seconds.

    Args:
        mark: The mark.
        without: A mark that whole files have, which are left out.
    """
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text()
        if f"mark.{mark}" in text and not (without and f"mark.{without}" in text):
            found.append(str(path.relative_to(ROOT)))
    return found


INSTALLS = {  # what tests of the others would each fetch
    "wheelhouses": Part([sys.executable, "-m", "isomorph", "wheelhouses"]),
    "sagemaker": Part([sys.executable, "-m", "tests.stacks.sagemaker_venv"]),
    "slurm": Part([sys.executable, "-m", "local_aws.slurm", "install"]),
}
UNIT = "not torch and not slow and not gates and not e2e"
PARTS = {  # in the order in which they start; what takes one worker fills up what takes two
    **INSTALLS,
    "types": Part([str(BIN / "mypy"), "--native-parser", *TYPED]),
    "shell": Part(["bash", "-c", "git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck"]),
    "lint": Part([str(BIN / "ruff"), "check", "."]),
    "format": Part([str(BIN / "ruff"), "format", "--check", "."]),
    # Each file has its own embedded AWS, for which a third would be one too many.
    "e2e": Part([*PYTEST, "e2e", *files("e2e")], least=2, most=2, after=("wheelhouses",)),
    "slow": Part(
        [*PYTEST, "slow and not torch and not e2e", *files("slow", without="torch")],
        least=0, most=0, after=("sagemaker", "slurm"),
    ),
    "local_aws": Part([*PYTEST, UNIT, "tests/local_aws"], least=0, most=0),
    "gates": Part([*PYTEST, "gates", *files("gates")], after=("wheelhouses", "slow")),
    "unit": Part([*PYTEST, UNIT, "--ignore", "tests/local_aws"], most=3, after=("gates",)),
    "torch": Part(
        [*PYTEST, "torch and not e2e", *files("torch")], least=2, most=3, after=("wheelhouses",)
    ),
}  # fmt: skip


@dataclass
class Run:
    """A part that runs, or ran."""

    name: str
    workers: int
    process: subprocess.Popen[bytes]
    said: Path
    started: float
    seconds: float = 0
    cpu_seconds: float = 0
    passed: bool = False


def start(name: str, workers: int, folder: Path) -> Run:
    """Start one part, which prints to a file in the folder, and has it for temporary ones."""
    said = folder / name
    environment = {
        # CONTRIBUTING.md says so: who runs all tests accepts the terms of Gemma's weights.
        "ISOMORPH_ACCEPT_GEMMA_TERMS": "1",
        "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "18,20",
        # More workers than cores: threads of one would wait for those of the others.
        "OMP_NUM_THREADS": "1",
        "NODE_OPTIONS": "--v8-pool-size=1",
        **os.environ,
        # What tests leave there, those above all that kill processes, goes at the end.
        "TMPDIR": str(folder),
        "STATE_DIR": str(folder / "ministack"),  # of the control plane, where tests import it
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    # Hundreds of processes start the project's code: each would compile it anew.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "tests.reaper", *PARTS[name].with_workers(workers)]
    with said.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    print(f"   {name} starts", flush=True)
    return Run(name, workers, process, said, time.monotonic())


def end(running: dict[int, Run]) -> Run:
    """Wait until one of the running parts has ended, show what it printed, and return it."""
    ended, status, used = os.wait4(-1, 0)
    run = running.pop(ended)
    run.process.returncode = os.waitstatus_to_exitcode(status)
    run.seconds = time.monotonic() - run.started
    run.cpu_seconds = used.ru_utime + used.ru_stime
    run.passed = run.process.returncode == 0
    print(f"== {run.name}\n{run.said.read_text(errors='replace')}", end="", flush=True)
    return run


def run_parts(names: Collection[str], folder: Path) -> list[Run]:
    """Run parts, as many at a time as there are workers for, and return them as they ended."""
    waiting = [name for name in PARTS if name in names]
    running: dict[int, Run] = {}
    ended = []
    while waiting or running:
        for name in tuple(waiting):
            part = PARTS[name]
            free = WORKERS - sum(run.workers for run in running.values())
            if {*waiting, *(run.name for run in running.values())}.intersection(part.after):
                continue
            if free < part.least:
                break  # those behind it would keep it waiting
            waiting.remove(name)
            run = start(name, min(free, part.most), folder)
            running[run.process.pid] = run
        try:
            ended.append(end(running))
        except KeyboardInterrupt:  # the parts got it, too: let them take down what they put up
            waiting.clear()
    return ended


def main(names: list[str]) -> int:
    """Run the named parts, or all of them, and return an exit code."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"no part {', '.join(unknown)}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    if "e2e" in (names or PARTS):
        for place in (ROOT, Path(tempfile.gettempdir())):
            free = shutil.disk_usage(place).free / 2**30
            if free < LEAST_GIB:
                print(
                    f"{place} has {free:.1f} GiB free; the part e2e takes {LEAST_GIB} at least: "
                    "make room, or name another folder for temporary files with TMPDIR",
                    file=sys.stderr,
                )
                return 2
    began = time.monotonic()
    # A short name: sockets lie in it, whose paths have to have less than 108 bytes.
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as folder:
        runs = run_parts(names or PARTS, Path(folder))
    print(f"\n{'part':<14} seconds  CPU seconds")
    for each in runs:
        result = "ok" if each.passed else "FAILED"
        print(f"{each.name:<14} {each.seconds:7.1f}  {each.cpu_seconds:11.1f}  {result}")
    used = sum(each.cpu_seconds for each in runs)
    print(f"{'all':<14} {time.monotonic() - began:7.1f}  {used:11.1f}")
    passed = sum(each.passed for each in runs)
    print(f"{passed} passed, {len(runs) - passed} failed")
    return 0 if passed == len(set(names) or PARTS) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
