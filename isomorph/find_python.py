"""Finds the Python that `make` makes .venv with: `python3 isomorph/find_python.py [PYTHON]`.

Without a name, that is the first on the PATH that will do; or another one there, of the same
version, if it is much faster. A Python that was built without `--enable-optimizations`, as pyenv
does, may take 1.4 times as long for the same work (this printed it of 3.11.7 beside Debian's
3.11.2), and no setting of a build tells for sure: so each computes for a moment.

Prints a path, and says on standard error why it is not the first. Whatever `python3` is runs this
file: Python 3.7 must do.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

_OLDEST = (3, 11)
_FASTER = 0.85  # of the first one's time; what is no faster than that is not worth the surprise
_NAME = re.compile(r"python3(\.\d+)?")
_PATIENCE_S = 20
_PROBE = """
import json, sys, time

class Number:
    def __init__(self, value):
        self.value = value

    def squared(self):
        return self.value * self.value

def work():
    begun = time.perf_counter()
    found = {}
    for value in range(20000):
        found[str(value)] = Number(value).squared()
    sorted(found.items(), key=lambda pair: pair[0])
    return time.perf_counter() - begun

try:
    import ensurepip, venv
except ImportError:
    lacks = True
else:
    lacks = False
print(json.dumps([sys.version_info[:2], lacks, min(work() for _ in range(9)), sys.executable]))
"""


class Python:
    """A Python that was tried.

    Args:
        command: Its path, or what a person named.
    """

    def __init__(self, command: str) -> None:
        self.command, self.real, self.wrong, self.seconds = command, "", "", 0.0
        try:
            done = subprocess.run(  # noqa: S603 - from the PATH, or named by the caller
                [command, "-c", _PROBE],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                timeout=_PATIENCE_S,
                check=True,
            )
            version, lacks, self.seconds, executable = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            self.wrong = "cannot be run"
            return
        self.version: tuple[int, ...] = tuple(version)
        self.real = os.path.realpath(executable)
        if self.version < _OLDEST:
            self.wrong = "is " + _dotted(self.version)
        elif lacks:
            self.wrong = "has no ensurepip and venv (Debian: python3-venv)"

    def __str__(self) -> str:
        """Return its path, and what is wrong with it."""
        return f"{self.command} {self.wrong}".rstrip()


def on_the_path(path: str) -> list[str]:
    """Return all that are called python3 or python3.N, of each folder python3 first."""
    found = []
    for folder in path.split(os.pathsep):
        try:
            names = sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name))
        except OSError:  # a folder of the PATH need not be there
            continue
        found += [os.path.join(folder, name) for name in names]
    return [one for one in found if os.access(one, os.X_OK)]


def choose(tried: list[Python]) -> Python | None:
    """Return the first that will do, or a much faster one like it; None where none will do."""
    usable = [python for python in tried if not python.wrong]
    if not usable:
        return None
    first = usable[0]
    alike = [python for python in usable if python.version == first.version]
    fastest = min(alike, key=lambda python: python.seconds)
    return fastest if fastest.seconds < _FASTER * first.seconds else first


def main(arguments: list[str]) -> int:
    """Print the path of the named Python, or of the one that was chosen."""
    commands = arguments or on_the_path(os.environ.get("PATH", ""))
    tried: list[Python] = []
    for command in commands:
        python = Python(command)
        if python.wrong or python.real not in [one.real for one in tried]:
            tried.append(python)
    chosen = choose(tried)
    if chosen is None:
        found = "; ".join(map(str, tried)) or "nothing on the PATH is called python3"
        sys.stderr.write(
            f"isomorph needs Python {_dotted(_OLDEST)} or newer: {found}; "
            "name another with make PYTHON=...\n"
        )
        return 1
    first = tried[0]
    if chosen is not first:
        why = str(first)
        if not first.wrong:
            why += f" takes {first.seconds / chosen.seconds:.1f} times as long for the same"
        sys.stderr.write(
            f"taking {chosen.command}: {why}; make PYTHON=... takes another, once .venv is gone\n"
        )
    sys.stdout.write(chosen.command + "\n")
    return 0


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
