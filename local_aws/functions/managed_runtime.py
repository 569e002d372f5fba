"""What Lambda's managed Python runtime has besides the function: an interpreter and the client.

The interpreter sees no package of this environment: neither the checkout, which is installed in it,
nor any library that the function forgot to bring along.
"""

import shutil
import sys
from importlib import metadata
from pathlib import Path

from local_aws.errors import EmulatorError

_CLIENT = ("awslambdaric", "simplejson", "snapshot-restore-py")


def prepare(folder: Path) -> None:
    """Put `bin/python` and the runtime interface client's packages into `folder`."""
    if (folder / "bin" / "python").exists():
        return
    packages = folder / "packages"
    packages.mkdir(parents=True)
    for name in _CLIENT:
        try:
            files = metadata.files(name) or []
        except metadata.PackageNotFoundError as error:
            raise EmulatorError(f"{name} is missing: install requirements.txt") from error
        for file in files:
            if file.parts[0] == ".." or "__pycache__" in file.parts:
                continue
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), target)
    launcher = folder / "bin" / "python"
    launcher.parent.mkdir()
    # -S: no site-packages, and so no .pth file that leads back to the checkout.
    base = getattr(sys, "_base_executable", sys.executable)
    launcher.write_text(f'#!/bin/sh\nexec "{base}" -S "$@"\n')
    launcher.chmod(0o755)


def command(folder: Path, handler: str) -> list[str]:
    """Return what a managed runtime starts: the real runtime interface client."""
    return [str(folder / "bin" / "python"), "-m", "awslambdaric", handler]
