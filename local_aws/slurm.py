"""Debian's Slurm on this machine: finds it, or unpacks it below the checkout.

`python -m local_aws.slurm install` needs neither root nor a change of the system: apt-get verifies
and downloads the distribution's own packages into a folder of ours, and they are only unpacked.
"""

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local_aws.errors import EmulatorError

FOLDER = Path(__file__).parents[1] / ".isomorph" / "cache" / "slurm"
VARIABLE = "ISOMORPH_SLURM"
STAND_IN = "stand-in"
COMMANDS = ("sbatch", "squeue", "scancel", "srun", "scontrol", "sinfo")
_DAEMONS = ("slurmctld", "slurmd", "slurmstepd", "munged")
_PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "libmunge2")
_PLACES = ("usr/sbin", "usr/bin", "sbin", "bin")
# slurm.conf has no way to quote in Include, and fills in what follows a % in some paths.
_PLAIN = re.compile(r"[A-Za-z0-9._/+-]+")


@dataclass(frozen=True)
class Slurm:
    """An installed, or unpacked, Slurm.

    Args:
        programs: Path of each daemon and command.
        version: As it calls itself, such as `slurm-wlm 22.05.8`.
        root: The folder below which it was unpacked, or None when it is installed.
    """

    programs: dict[str, Path]
    version: str
    root: Path | None = None

    @property
    def plugins(self) -> Path | None:
        """Folder of the plugins, where it is not the one that was compiled in."""
        return next(self.root.glob("usr/lib/*/slurm-wlm"), None) if self.root else None

    @property
    def libraries(self) -> str:
        """What LD_LIBRARY_PATH has to be; empty for an installed one."""
        return _libraries(self.root) if self.root else ""

    def fits(self, folder: Path) -> bool:
        """Tell whether slurm.conf can name paths in a folder, and in that of temporary files."""
        return all(_PLAIN.fullmatch(str(each)) for each in (folder, tempfile.gettempdir()))


def find() -> Slurm | None:
    """Return the Slurm that a cluster here uses: the installed one, else the unpacked one.

    The variable ISOMORPH_SLURM names another: a folder, or `stand-in` for none.

    Raises:
        EmulatorError: the variable names a folder without Slurm.
    """
    given = os.environ.get(VARIABLE, "")
    if given == STAND_IN:
        return None
    if not given:
        return _installed() or _unpacked(FOLDER / "root")
    found = _unpacked(Path(given).resolve())
    if found is None:
        raise EmulatorError(
            f"{VARIABLE} is {given!r}, and there is no Slurm: name a folder in which "
            f"`python -m local_aws.slurm install` unpacked one, '{STAND_IN}', or leave it out"
        )
    return found


def install(folder: Path = FOLDER) -> Slurm:
    """Unpack Debian's packages below a folder, unless they are there, and return what they hold.

    Args:
        folder: Gets `root`, with the packages' files, and `packages`, with their names.

    Raises:
        EmulatorError: no Debian packages here, or they cannot be downloaded.
    """
    if found := _unpacked(folder / "root"):
        return found
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise EmulatorError(
                f"this machine has no {program}: install Slurm's daemons and munge as your system "
                f"does (Debian: apt-get install slurm-wlm), or leave it to the stand-in"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _unpacked(folder / "root") or _unpack(folder)
    if found is None:
        raise EmulatorError(f"Slurm from {', '.join(_PACKAGES)} does not start on this machine")
    return found


def _unpack(folder: Path) -> Slurm | None:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        made = Path(name)
        (made / "root").mkdir()
        archives = _download(made)
        for archive in archives:
            _run(["dpkg-deb", "--extract", str(archive), str(made / "root")], "unpack Slurm")
        shutil.rmtree(folder / "root", ignore_errors=True)
        (made / "root").replace(folder / "root")
        (folder / "packages").write_text("".join(f"{each.stem}\n" for each in archives))
    return _unpacked(folder / "root")


def _download(folder: Path) -> list[Path]:
    """Let apt-get download the packages, and those libraries of theirs that this system lacks."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    options = {
        "Dir::State": folder / "state",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": folder / "cache",
        "Debug::NoLocking": "true",  # the locks of the system's own folders are root's
        "APT::Sandbox::User": "root",  # else root's apt-get may not write below a checkout
    }
    words = ["apt-get", "--quiet=2"]
    for key, value in options.items():
        words += ["-o", f"{key}={value}"]
    _run([*words, "update"], "read the lists of Debian's packages")
    chosen = ["--yes", "--download-only", "--no-install-recommends", "--reinstall"]
    _run([*words, "install", *chosen, *_PACKAGES], "download Slurm's packages")
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def _run(words: list[str], what: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise EmulatorError(f"cannot {what}: {said[-1] if said else words[0] + ' failed'}")


def _installed() -> Slurm | None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = {name: shutil.which(name, path=path) for name in (*_DAEMONS, *COMMANDS)}
    programs = {name: Path(where) for name, where in found.items() if where}
    return _described(programs, None)


def _unpacked(root: Path) -> Slurm | None:
    programs: dict[str, Path] = {}
    for name in (*_DAEMONS, *COMMANDS):
        for place in _PLACES:
            # Debian's daemons get their plain names when they are installed.
            for file in (root / place / name, root / place / f"{name}-wlm"):
                if file.is_file():
                    programs.setdefault(name, file)
    return _described(programs, root)


def _described(programs: dict[str, Path], root: Path | None) -> Slurm | None:
    """Return it, if all of its programs are there and start."""
    if not {*_DAEMONS, *COMMANDS} <= set(programs):
        return None
    environment = {**os.environ, "LD_LIBRARY_PATH": _libraries(root)} if root else None
    words = [str(programs["slurmctld"]), "-V"]
    try:
        done = subprocess.run(  # noqa: S603 - found on the path, or unpacked by us
            words, env=environment, capture_output=True, text=True, check=False, timeout=30
        )
    except OSError:  # of another architecture
        return None
    return None if done.returncode else Slurm(programs, done.stdout.strip(), root)


def _libraries(root: Path) -> str:
    folders = [*root.glob("usr/lib/*-linux-*"), *root.glob("usr/lib/*/slurm-wlm")]
    return os.pathsep.join(map(str, [*folders, *root.glob("lib/*-linux-*")]))


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except EmulatorError as error:
        sys.exit(f"error: {error}")


def main(arguments: list[str] | None = None) -> None:
    """Say which Slurm is here, after installing one where none is and Debian's packages are."""
    parser = argparse.ArgumentParser(prog="python -m local_aws.slurm")
    parser.add_argument("command", choices=["install", "which"])
    given = parser.parse_args(arguments)
    with _one_line():
        found = find()
        if found is None and given.command == "install" and os.environ.get(VARIABLE) != STAND_IN:
            if not shutil.which("apt-get"):
                print("no Slurm, and no apt-get to download Debian's: the stand-in runs jobs here")
                return
            found = install()
    if found is None:
        print("no Slurm: the stand-in runs jobs here (python -m local_aws.slurm install)")
    else:
        print(f"{found.version} in {found.root or found.programs['slurmctld'].parent}")


if __name__ == "__main__":
    main()
