"""Runs what CI runs, part by part, and prints how long each took: `python -m tests [PART ...]`.

One part after the other: with the end-to-end tests beside the others, what waits for a machine or
a cache failed now and then.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.prefix) / "bin"
TYPED = [
    *("app.py", "config", "constructs_lib", "stacks", "planner", "model_code"),
    *("local_aws", "isomorph", "bench"),
]
PYTEST = [sys.executable, "-m", "pytest"]
BOTH_CORES = ["-n", "2", "--dist", "loadfile"]

PARTS: dict[str, list[str]] = {
    "format": [str(BIN / "ruff"), "format", "--check", "."],
    "lint": [str(BIN / "ruff"), "check", "."],
    "types": [str(BIN / "mypy"), "--native-parser", *TYPED],
    "shell": ["bash", "-c", "git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck"],
    "wheelhouses": [sys.executable, "-m", "isomorph", "wheelhouses"],
    "slurm": [sys.executable, "-m", "local_aws.slurm", "install"],
    "unit": [*PYTEST, *BOTH_CORES, "-m", "not torch and not slow and not gates and not e2e"],
    "slow": [*PYTEST, "-m", "slow and not torch and not e2e"],
    "torch": [*PYTEST, *BOTH_CORES, "-m", "torch and not e2e"],
    "gates": [*PYTEST, "-m", "gates"],
    "e2e": [*PYTEST, *BOTH_CORES, "-m", "e2e"],  # each file has its own embedded AWS
}


@dataclass(frozen=True)
class Result:
    """How one part went."""

    name: str
    seconds: float
    passed: bool


def run(name: str) -> Result:
    """Run one part."""
    print(f"== {name}", flush=True)
    environment = {
        # CONTRIBUTING.md says so: who runs all tests accepts the terms of Gemma's weights.
        "ISOMORPH_ACCEPT_GEMMA_TERMS": "1",
        "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "18,20",
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    start = time.monotonic()
    done = subprocess.run(PARTS[name], cwd=ROOT, env=environment)
    return Result(name, time.monotonic() - start, done.returncode == 0)


def main(names: list[str]) -> int:
    """Run the named parts, or all of them, and return an exit code."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"no part {', '.join(unknown)}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    start = time.monotonic()
    results = [run(name) for name in names or PARTS]
    print("\npart           seconds")
    for each in results:
        print(f"{each.name:<14} {each.seconds:7.1f}  {'ok' if each.passed else 'FAILED'}")
    print(f"{'all':<14} {time.monotonic() - start:7.1f}")
    failed = sum(not each.passed for each in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
