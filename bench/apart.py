"""Peers that are installed for one measurement, apart from what the project has."""

import subprocess
import sys
from pathlib import Path


class NotInstallableError(Exception):
    """pip has no build for this machine, or it does not load; the message says which."""


def install(package: str, folder: Path, *options: str) -> Path:
    """Let pip put a package, as NAME==VERSION, and what it needs into `folder`; returns that.

    Raises:
        NotInstallableError: pip cannot.
    """
    command = [sys.executable, "-m", "pip", "install", "-q", "--only-binary", ":all:", *options,
               "--target", str(folder), package]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or "no message").splitlines()[-1]
        raise NotInstallableError(f"pip cannot install {package}: {said}")
    return folder
