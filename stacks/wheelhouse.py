"""Where the wheels of a deployable target are: built by `make wheelhouses`, published by a stack.

A private node has no PyPI, so its wheels travel with its code. The name holds everything that the
wheels depend on; a changed lock file asks for another wheelhouse instead of using a stale one.
"""

import hashlib
import sys
from pathlib import Path

from config import ConfigError

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".isomorph" / "cache" / "wheelhouses"
HOST = "host"
SERVE, TRAIN = "serve", "train"  # targets: folders below an innovation's code


def python_command(python: str) -> str:
    """Return the command that starts the target's Python: `host` is this machine's own."""
    return "python3" if python == HOST else f"python{python}"


def wheelhouse_name(slug: str, python: str, engine: str, target: str = SERVE) -> str:
    """Return the file name of the wheels for one target Python and one engine."""
    if python == HOST:
        python = f"{HOST}{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256()
    for lock in lock_files(slug, engine, target):
        digest.update(lock.read_bytes())
    what = slug if target == SERVE else f"{slug}-{target}"
    return f"{what}-{engine}-{python}-{digest.hexdigest()[:12]}.zip"


def lock_files(slug: str, engine: str, target: str = SERVE) -> list[Path]:
    """Return the files that say which wheels there must be."""
    folder = ROOT / "model_code" / slug / target
    names = ["requirements.txt"]
    if engine == "native":
        names.append("requirements-native.in")
    return [folder / name for name in names]


def wheelhouse(
    slug: str, python: str, engine: str, folder: Path = FOLDER, target: str = SERVE
) -> Path:
    """Return the wheels' zip, or say how to build it.

    Args:
        slug: Of the innovation.
        python: The target's, `host` or a version.
        engine: native has torch's CPU build; image leaves torch to the machine's image.
        folder: Of the built wheels.
        target: Folder of the innovation's code that runs there: serve or train.
    """
    path = folder / wheelhouse_name(slug, python, engine, target)
    if not path.is_file():
        raise ConfigError(
            f"the wheels for {slug} (engine {engine}, python {python}) are not built: no "
            f"{path.name} in {_short(folder)}; run `make wheelhouses`"
        )
    return path


def _short(folder: Path) -> str:
    return str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else str(folder)


def function_libraries_name(slug: str, python: str, architecture: str) -> str:
    """Return the file name of the libraries of a function for one Python and one processor."""
    if python == HOST:
        python = f"{HOST}{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(function_lock(slug).read_bytes()).hexdigest()
    return f"{slug}-function-{python}-{architecture}-{digest[:12]}.zip"


def function_lock(slug: str) -> Path:
    """Return the file that says which libraries a function brings along."""
    return ROOT / "model_code" / slug / "handler" / "requirements.txt"


def function_libraries(slug: str, python: str, architecture: str, folder: Path = FOLDER) -> Path:
    """Return the zip of a function's unpacked libraries, or say how to build it."""
    path = folder / function_libraries_name(slug, python, architecture)
    if not path.is_file():
        raise ConfigError(
            f"the libraries of the function of {slug} (python {python}, {architecture}) are not "
            f"built: no {path.name} in {_short(folder)}; run `make wheelhouses`"
        )
    return path
