"""Compiles the kernels on the machine that runs them, once, if it has a compiler. It never must."""

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from model_code.common.errors import SettingsError

_LOG = logging.getLogger(__name__)
SETTING = "ISOMORPH_KERNELS"
CACHE = "ISOMORPH_KERNELS_CACHE"
CHOICES = ("auto", "off")
_HERE = Path(__file__).parent
HEADERS = (
    "vectors.h", "rows.h", "few_bits.h", "matmul.h", "experts.h", "router.h", "team.h",
    "attend.h", "one_token.h", "layer.h", "step.h", "mixture.h", "one_mixture.h",
)  # fmt: skip
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-pthread", "-shared", "-fPIC", "-w")
_TIMEOUT_S = 120


class BuildError(Exception):
    """The kernels cannot be had here; the message says why."""


def load(env: Mapping[str, str] = os.environ) -> ctypes.CDLL:
    """Return the compiled kernels, from the cache where they are there.

    Raises:
        BuildError: There is no compiler, it failed, or the setting says off.
        SettingsError: The setting has another value.
    """
    choice = env.get(SETTING, "") or CHOICES[0]
    if choice not in CHOICES:
        raise SettingsError(f"{SETTING} is {choice!r}; allowed: {', '.join(CHOICES)}")
    if choice == "off":
        raise BuildError(f"{SETTING} is off")
    return compiled(_HERE / "kernels.cpp", env)


def compiled(source: Path, env: Mapping[str, str] = os.environ) -> ctypes.CDLL:
    """Return what becomes of a file that may include the kernels' headers.

    Raises:
        BuildError: There is no compiler, or it failed.
    """
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise BuildError(f"none of {', '.join(_COMPILERS)} is on the path")
    try:
        library = _private(cache_folder(env)) / f"{digest(compiler, source)}.so"
        if not library.is_file():
            with _alone(library.parent):
                if not library.is_file():
                    _compile(compiler, source, library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(str(error)) from error


def cache_folder(env: Mapping[str, str]) -> Path:
    """Return where compiled kernels are kept: as told, a server's state, or the user's cache."""
    if env.get(CACHE):
        return Path(env[CACHE])
    state = env.get("STATE_DIRECTORY") or env.get("ISOMORPH_STATE")
    if state:
        return Path(state) / "kernels"
    home = env.get("XDG_CACHE_HOME") or Path(env.get("HOME") or Path.home()) / ".cache"
    return Path(home) / "isomorph" / "kernels"


def digest(compiler: str, source: Path) -> str:
    """Return what the result depends on: sources, flags, compiler and CPU."""
    found = hashlib.sha256(source.read_bytes())
    for name in HEADERS:
        found.update((_HERE / name).read_bytes())
    real = Path(compiler).resolve()
    identity = (*_FLAGS, str(real), str(real.stat().st_mtime_ns), platform.machine(), _cpu())
    found.update("\0".join(identity).encode())
    return found.hexdigest()[:32]


def _cpu() -> str:
    """Return the instructions that the CPU has; a home that two machines share has both."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _private(folder: Path) -> Path:
    """Make the folder, and refuse one that somebody else could put a library into."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(f"{folder} can be written by others")
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for others who compile into the folder: two servers of a machine may start at once."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: then both compile
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _compile(compiler: str, source: Path, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, *_FLAGS, f"-I{_HERE}", "-o", str(made), str(source)]
        try:
            done = subprocess.run(  # noqa: S603  a compiler of the machine, on our own source
                command, capture_output=True, text=True, timeout=_TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{compiler} took more than {_TIMEOUT_S} s") from error
        if done.returncode:
            first = (done.stderr.strip() or "no message").splitlines()[0]
            raise BuildError(f"{compiler} failed: {first}")
        os.replace(made, library)  # whole or not at all, whoever else compiles it right now
