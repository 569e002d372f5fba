"""Wheelhouses: the wheels that a node installs, in one zip, made before synthesis and cached.

Private nodes reach no package index, so every wheel travels with the deployment. pip checks each
against the target's locked requirements. torch is the exception: the hash of its CPU build differs
from index to index, so the native engine's list is locked here, while the wheelhouse is built.
"""

import platform
import shutil
import sys
import zipfile
from pathlib import Path

from isomorph import packages
from isomorph.paths import ROOT
from isomorph.torch_build import prefer_cpu
from stacks.wheelhouse import HOST, wheelhouse_name

LOCK = "requirements-native.txt"  # the name inside the zip; boot.sh installs from it
_GLIBC_MINOR = 34  # Amazon Linux 2023 has glibc 2.34; pip wants every older tag by name
_GLIBC = [f"manylinux_2_{minor}" for minor in range(_GLIBC_MINOR, 4, -1)]
_GLIBC += ["manylinux2014", "manylinux2010", "manylinux1"]
_MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}  # AWS's word -> that of wheels


def target_options(python: str, architecture: str = "x86_64") -> list[str]:
    """Return pip's options for a target's Python: `host` is this machine's, `3.11` Amazon Linux's.

    Args:
        python: `host`, or a version of Amazon Linux 2023 or of Lambda's runtimes there.
        architecture: x86_64 or arm64, as AWS calls them.
    """
    if python == HOST:
        return []
    tag = "cp" + python.replace(".", "")
    abis = [tag, "abi3", "none"]
    return [
        *("--python-version", python, "--implementation", "cp"),
        *(part for abi in abis for part in ("--abi", abi)),
        *(part for name in _GLIBC for part in ("--platform", f"{name}_{_MACHINES[architecture]}")),
    ]


def runs_what_amazon_linux_runs() -> bool:
    """Return whether wheels for Amazon Linux and this machine's version of Python run here."""
    library, version = platform.libc_ver()
    return (
        (platform.system(), platform.machine()) == ("Linux", "x86_64")
        and platform.python_implementation() == "CPython"
        and library == "glibc"
        and int(version.split(".")[1]) >= _GLIBC_MINOR
    )


def lock(wheels: list[Path]) -> str:
    """Return requirements with the hash of each wheel, as `pip install --require-hashes` wants."""
    rows = []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        rows.append(f"{name}=={version} --hash=sha256:{packages.sha256(wheel)}")
    return "\n".join(sorted(rows)) + "\n"


def build(slug: str, *, engine: str, python: str, path: Path, target: str = "serve") -> None:
    """Download the wheels of one target and put them into the zip `path`, whole or not at all.

    Those for this machine's Python are not downloaded again if they are there for Amazon Linux's.

    Raises:
        UserError: no network, no wheel for the target, a wrong hash, or a full disk.
    """
    if python == HOST and runs_what_amazon_linux_runs():
        same = f"{sys.version_info.major}.{sys.version_info.minor}"
        there = path.parent / wheelhouse_name(slug, same, engine, target)
        if there.is_file():
            with packages.scratch(path.parent) as scratch:
                made = scratch / "wheelhouse.zip"
                try:
                    made.hardlink_to(there)
                except OSError:  # not every file system has links
                    shutil.copyfile(there, made)
                made.replace(path)
            return
    folder = ROOT / "model_code" / slug / target
    options = target_options(python)
    with packages.scratch(path.parent) as scratch:
        packages.need_space(scratch, 3 * 10**8 if engine != "native" else 10**9, "a wheelhouse")
        locked = (folder / "requirements.txt").read_text()
        wheels = packages.download(locked, scratch, options=["--require-hashes", *options])
        extra = ""
        if engine == "native":
            native = scratch / "native"
            native.mkdir()
            wanted = prefer_cpu((folder / "requirements-native.in").read_text())
            own = packages.download(wanted, native, options=options)
            here = {wheel.name.split("-")[0] for wheel in wheels}
            own = [wheel for wheel in own if wheel.name.split("-")[0] not in here]
            wheels, extra = [*wheels, *own], lock(own)
        made = scratch / "wheelhouse.zip"
        _zip(made, wheels, extra)
        made.replace(path)


def _zip(path: Path, wheels: list[Path], native_lock: str) -> None:
    """Write a zip that depends on nothing but its content, so that its digest is stable."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for wheel in sorted(wheels, key=lambda file: file.name):
            entry = zipfile.ZipInfo(wheel.name)
            with archive.open(entry, "w", force_zip64=True) as out, wheel.open("rb") as content:
                shutil.copyfileobj(content, out, 1 << 20)
        if native_lock:
            archive.writestr(zipfile.ZipInfo(LOCK), native_lock)
