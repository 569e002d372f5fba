"""Which build of torch pip offers; `python -m isomorph.torch_build FILE` installs a list with it.

`... PYTHON OPTION ...` installs it into the environment of another Python, with pip's options.

On most Linux machines the package index's torch is a CUDA build of several GB. Where pip can reach
a CPU build of the pinned version (local version label `+cpu`), that one is asked for by name.
"""

import functools
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from isomorph.output import say

_PIN = re.compile(r"^torch==([\w.]+)$", re.MULTILINE)


@functools.cache
def _offers(requirement: str) -> bool:
    """Return whether pip can find `requirement`, without installing it."""
    command = [
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"),
        *("--no-deps", "--disable-pip-version-check", requirement),
    ]
    return subprocess.run(command, capture_output=True).returncode == 0  # noqa: S603


def prefer_cpu(requirements: str) -> str:
    """Return `requirements` with its pin of torch turned to the CPU build, where pip offers one."""
    pin = _PIN.search(requirements)
    if pin is None:
        return requirements
    cpu = f"torch=={pin[1]}+cpu"
    if _offers(cpu):
        say(f"torch: pip offers the CPU build {cpu} and takes it")
        return _PIN.sub(cpu, requirements)
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        say(
            f"torch: pip offers no {cpu} here, so it takes the package index's build, which has "
            f"CUDA and several GB; add PyTorch's CPU index to pip's extra-index-url to avoid that"
        )
    return requirements


def main() -> int:
    """Install the requirements file named on the command line."""
    path, *more = sys.argv[1:]
    python, options = (more[0], more[1:]) if more else (sys.executable, [])
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as chosen:
        chosen.write(prefer_cpu(Path(path).read_text()))
        chosen.flush()
        command = [python, "-m", "pip", "install", "--quiet", *options, "-r", chosen.name]
        return subprocess.run(command).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
