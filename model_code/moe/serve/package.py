"""Makes a model.tar.gz: `python -m model_code.moe.serve.package FOLDER OUT.tar.gz`.

What SageMaker unpacks into /opt/ml/model: the weights at its root, and code/inference.py with what
it imports ("Model directory structure" in the SageMaker Python SDK's documentation of PyTorch). The
same input gives the same bytes.
"""

import argparse
import gzip
import os
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from model_code.common.errors import UserError, WeightsError

_CODE = Path(__file__).parents[2]  # model_code
_NEEDED = ("config.json", "tokenizer.json")
COMPILED = "neuron"


def build(folder: Path, out: Path, compiled: Path | None = None) -> Path:
    """Write the weights in `folder`, and the code that serves them, to `out`.

    Args:
        folder: A model's; only files are in it, and perhaps neuron/.
        out: The archive; replaced if it is there.
        compiled: A folder of `isomorph compile moe`, for neuron/; FOLDER/neuron if it is left out.

    Raises:
        WeightsError: The folder is no model's, or holds what must not be in an archive.
    """
    if missing := [name for name in _NEEDED if not (folder / name).is_file()]:
        raise WeightsError(f"{folder}: has no {', '.join(missing)}; it must be a model's folder")
    partial = out.with_name(out.name + ".partial")
    try:
        with (
            partial.open("wb") as raw,
            gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name, path in sorted(_members(folder, compiled)):
                _add(archive, name, path)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def _members(folder: Path, compiled: Path | None) -> Iterator[tuple[str, Path]]:
    for path in folder.iterdir():
        if not path.name.startswith(".") and path.name not in ("code", COMPILED):
            if path.is_symlink() or not path.is_file():
                raise WeightsError(f"{path}: is no plain file; a model's folder holds files only")
            yield path.name, path
    graphs = compiled or folder / COMPILED
    if compiled and not graphs.is_dir():
        raise WeightsError(f"{graphs}: is not a folder; `isomorph compile moe` makes one")
    for path in graphs.glob("*"):
        yield f"{COMPILED}/{path.name}", path
    yield from code_members()


def code_members() -> Iterator[tuple[str, Path]]:
    """Yield what goes to code/: inference.py, its requirements, and the model code."""
    own = _CODE / "moe" / "serve"
    yield "code/inference.py", own / "inference.py"
    yield "code/requirements.txt", own / "requirements-container.txt"
    yield "code/model_code/__init__.py", _CODE / "__init__.py"
    for part in ("common", "moe"):
        for path in (_CODE / part).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"code/model_code/{path.relative_to(_CODE).as_posix()}", path
    for model in _CODE.glob("*/model.py"):
        if model.parent.name != "moe":
            for path in (model.parent / "__init__.py", model):
                yield f"code/model_code/{path.relative_to(_CODE).as_posix()}", path


def _add(archive: tarfile.TarFile, name: str, path: Path) -> None:
    """Add a file without its owner, its rights and its time."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = path.stat().st_size, 0o644
    with path.open("rb") as file:
        archive.addfile(entry, file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make an archive; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model_code.moe.serve.package")
    parser.add_argument("folder", type=Path, help="a model's folder")
    parser.add_argument("out", type=Path, help="the archive to write")
    parser.add_argument("--compiled", type=Path, help="a folder of compiled graphs")
    given = parser.parse_args(arguments)
    try:
        build(given.folder, given.out, given.compiled)
    except UserError as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: {given.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
