"""Runs what CI runs, part by part, and prints how long each took: `python -m tests [PART ...]`."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.prefix) / "bin"
TYPED = [
    *("app.py", "config", "constructs_lib", "stacks", "planner", "model_code"),
    *("local_aws", "isomorph", "bench"),
]
PYTEST = [sys.executable, "-m", "pytest"]

PARTS: dict[str, list[list[str]]] = {
    "format": [[str(BIN / "ruff"), "format", "--check", "."]],
    "lint": [[str(BIN / "ruff"), "check", "."]],
    "types": [[str(BIN / "mypy"), *TYPED]],
    "shell": [["bash", "-c", "git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck"]],
    "wheelhouses": [[str(BIN / "isomorph"), "wheelhouses"]],
    "unit": [
        [
            *PYTEST,
            "-n",
            "2",
            "--dist",
            "loadfile",
            "-m",
            "not torch and not slow and not gates and not e2e",
        ]
    ],
    "slow": [[*PYTEST, "-m", "slow and not torch and not e2e"]],
    "torch": [[*PYTEST, "-n", "2", "--dist", "loadfile", "-m", "torch and not e2e"]],
    "gates": [[*PYTEST, "-m", "gates"]],
    "e2e": [[*PYTEST, "-m", "e2e"]],
}


def run(commands: list[list[str]]) -> bool:
    """Run commands one after the other and tell whether all of them succeeded."""
    environment = {
        "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "18,20",
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    return all(
        subprocess.run(command, cwd=ROOT, env=environment).returncode == 0 for command in commands
    )


def main(names: list[str]) -> int:
    """Run the named parts, or all of them, and return an exit code."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"no part {', '.join(unknown)}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    results: list[tuple[str, float, bool]] = []
    for name in names or PARTS:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        passed = run(PARTS[name])
        results.append((name, time.monotonic() - start, passed))
    print("\npart           seconds")
    for name, seconds, passed in results:
        print(f"{name:<14} {seconds:7.1f}  {'ok' if passed else 'FAILED'}")
    failed = sum(not passed for _, _, passed in results)
    print(f"{'all':<14} {sum(seconds for _, seconds, _ in results):7.1f}")
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
