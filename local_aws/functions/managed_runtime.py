"""What Lambda's managed Python runtime has besides the function: interpreter, client and AWS SDK.

The interpreter sees nothing else of this environment: neither the checkout, which is installed in
it, nor any library that the function forgot to bring along.
https://docs.aws.amazon.com/lambda/latest/dg/lambda-python.html (the SDK is part of the runtime)
"""

import shutil
import sys
from importlib import metadata
from pathlib import Path

from local_aws.errors import EmulatorError

_CLIENT = ("awslambdaric", "simplejson", "snapshot-restore-py")
_SDK = ("boto3", "botocore", "jmespath", "python-dateutil", "s3transfer", "six", "urllib3")


def prepare(folder: Path) -> None:
    """Put `bin/python` and the packages of the runtime into `folder`."""
    if (folder / "bin" / "python").exists():
        return
    packages = folder / "packages"
    packages.mkdir(parents=True)
    for name in _CLIENT:
        for file in _files(name):
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), target)
    for name in _SDK:  # thousands of files: linked, not copied
        for top in {file.parts[0]: file for file in _files(name)}.values():
            link = packages / top.parts[0]
            link.symlink_to(Path(str(top.locate())).parents[len(top.parts) - 1] / top.parts[0])
    launcher = folder / "bin" / "python"
    launcher.parent.mkdir()
    # -S: no site-packages, and so no .pth file that leads back to the checkout.
    base = getattr(sys, "_base_executable", sys.executable)
    launcher.write_text(f'#!/bin/sh\nexec "{base}" -S "$@"\n')
    launcher.chmod(0o755)


def _files(name: str) -> list[metadata.PackagePath]:
    """Return the files of an installed package, without scripts and compiled modules."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError as error:
        raise EmulatorError(f"{name} is missing: install requirements.txt") from error
    return [file for file in files if file.parts[0] != ".." and "__pycache__" not in file.parts]


def command(folder: Path, handler: str) -> list[str]:
    """Return what a managed runtime starts: the real runtime interface client."""
    return [str(folder / "bin" / "python"), "-m", "awslambdaric", handler]
