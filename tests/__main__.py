"""Runs what CI runs, part by part, and prints how long each took: `python -m tests [PART ...]`.

First two parts at a time of those that use one core, each printed when it has ended; then, one
after the other, those whose tests two workers share. With the end-to-end tests beside the others,
what waits for a machine or a cache failed now and then.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.prefix) / "bin"
TYPED = [
    *("app.py", "config", "constructs_lib", "stacks", "planner", "model_code"),
    *("local_aws", "isomorph", "bench"),
]
PYTEST = [sys.executable, "-m", "pytest"]
# tests/conftest.py says which files go first; the plugin's own order is by the number of tests.
BOTH_CORES = [*PYTEST, "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]

INSTALLS: dict[str, list[str]] = {  # what tests of the others would each fetch
    "wheelhouses": [sys.executable, "-m", "isomorph", "wheelhouses"],
    "sagemaker": [sys.executable, "-m", "tests.stacks.sagemaker_venv"],
    "slurm": [sys.executable, "-m", "local_aws.slurm", "install"],
}
ONE_CORE: dict[str, list[str]] = {  # longest first
    "slow": [*PYTEST, "-m", "slow and not torch and not e2e"],  # clusters, one at a time
    "gates": [*PYTEST, "-m", "gates"],
    "types": [str(BIN / "mypy"), "--native-parser", *TYPED],
    "shell": ["bash", "-c", "git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck"],
    "lint": [str(BIN / "ruff"), "check", "."],
    "format": [str(BIN / "ruff"), "format", "--check", "."],
}
TWO_WORKERS: dict[str, list[str]] = {
    "unit": [*BOTH_CORES, "-m", "not torch and not slow and not gates and not e2e"],
    "torch": [*BOTH_CORES, "-m", "torch and not e2e"],
    "e2e": [*BOTH_CORES, "-m", "e2e", "tests/e2e"],  # each file has its own embedded AWS
}
PARTS = {**INSTALLS, **ONE_CORE, **TWO_WORKERS}


@dataclass(frozen=True)
class Result:
    """How one part went; `said` is what it printed, unless it was seen already."""

    name: str
    seconds: float
    passed: bool
    said: str = ""


def run(name: str, *, captured: bool = False) -> Result:
    """Run one part."""
    environment = {
        # CONTRIBUTING.md says so: who runs all tests accepts the terms of Gemma's weights.
        "ISOMORPH_ACCEPT_GEMMA_TERMS": "1",
        "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "18,20",
        # Two workers on two cores: threads of one would wait for those of the other.
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    # Hundreds of processes start the project's code: each would compile it anew.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.monotonic()
    done = subprocess.run(
        PARTS[name],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE if captured else None,
        stderr=subprocess.STDOUT if captured else None,
        text=True,
        errors="replace",
    )
    return Result(name, time.monotonic() - start, done.returncode == 0, done.stdout or "")


def run_two_at_a_time(names: Iterable[str]) -> list[Result]:
    """Run parts, print what each said when it has ended, and return them in the order of ends."""
    results = []
    with ThreadPoolExecutor(2) as pool:
        for future in as_completed([pool.submit(run, name, captured=True) for name in names]):
            results.append(future.result())
            print(f"== {results[-1].name}\n{results[-1].said}", end="", flush=True)
    return results


def main(names: list[str]) -> int:
    """Run the named parts, or all of them, and return an exit code."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"no part {', '.join(unknown)}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    start = time.monotonic()
    wanted = names or list(PARTS)
    results = [
        result
        for parts in (INSTALLS, ONE_CORE)
        for result in run_two_at_a_time(name for name in parts if name in wanted)
    ]
    for name in TWO_WORKERS:
        if name in wanted:
            print(f"== {name}", flush=True)
            results.append(run(name))
    print("\npart           seconds")
    for each in results:
        print(f"{each.name:<14} {each.seconds:7.1f}  {'ok' if each.passed else 'FAILED'}")
    print(f"{'all':<14} {time.monotonic() - start:7.1f}")
    failed = sum(not each.passed for each in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
