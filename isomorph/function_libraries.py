"""The libraries of a Lambda function: wheels unpacked into one zip, made before synthesis.

Lambda imports from unpacked files and gives 250 MB to all of them, so what a function never reads
stays out: other services' API descriptions, tests, and records of installations.
"""

import fnmatch
import zipfile
from pathlib import Path

from isomorph import packages
from isomorph.wheelhouse import target_options
from stacks.wheelhouse import HOST, function_lock

# botocore describes 400 services; the function reads weights from S3.
_BOTOCORE = ("endpoints.json", "partitions.json", "sdk-default-configuration.json", "_retry.json")
_BOTOCORE_SERVICES = ("s3",)
_LEFT_OUT = ("*/tests/*", "*.dist-info/RECORD", "*.dist-info/WHEEL", "*.dist-info/top_level.txt")
_OPENMP = "libgomp-*.so*"  # as a wheel's repair has renamed it
_EPOCH = (1980, 1, 1, 0, 0, 0)


def build(slug: str, *, python: str, architecture: str, path: Path) -> None:
    """Download the libraries of one function and put them, unpacked, into the zip `path`.

    Raises:
        UserError: no network, no wheel for the target, a wrong hash, or a full disk.
    """
    options = [] if python == HOST else target_options(python, architecture)
    with packages.scratch(path.parent) as scratch:
        packages.need_space(scratch, 3 * 10**8, "a function's libraries")
        locked = function_lock(slug).read_text()
        wheels = packages.download(locked, scratch, options=["--require-hashes", *options])
        made = scratch / "libraries.zip"
        write(made, wheels)
        made.replace(path)


def write(path: Path, wheels: list[Path]) -> None:
    """Unpack `wheels` into one zip that depends on nothing but their content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as out:
        for wheel in sorted(wheels, key=lambda file: file.name):
            with zipfile.ZipFile(wheel) as archive:
                for name in sorted(archive.namelist()):
                    if target := _target(wheel.name, name):
                        entry = zipfile.ZipInfo(target, _EPOCH)
                        entry.create_system, entry.external_attr = 3, 0o100644 << 16
                        entry.compress_type = zipfile.ZIP_DEFLATED
                        out.writestr(entry, archive.read(name))


def _target(wheel: str, name: str) -> str | None:
    """Return where a wheel's file goes; None for what is left out."""
    if name.endswith("/") or any(fnmatch.fnmatchcase(name, pattern) for pattern in _LEFT_OUT):
        return None
    if wheel.startswith("numpy-"):  # pykdtree's, which is never imported
        return None
    if wheel.startswith("pykdtree-"):  # taken for its OpenMP runtime alone
        found = fnmatch.fnmatchcase(name.rpartition("/")[2], _OPENMP)
        return "lib/libgomp.so.1" if found else None  # Lambda looks for libraries in lib/
    parts = name.split("/")
    if parts[:2] == ["botocore", "data"] and parts[2] not in (*_BOTOCORE, *_BOTOCORE_SERVICES):
        return None
    if parts[:2] == ["boto3", "data"] or parts[:2] == ["boto3", "examples"]:
        return None
    if parts[0].endswith(".data"):  # scripts: nobody calls them there
        return None
    return name
