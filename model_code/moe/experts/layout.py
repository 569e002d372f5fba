"""Divides a checkpoint: `python -m model_code.moe.experts.layout FOLDER OUT`.

What every token needs goes to dense.safetensors, the experts of a layer to a file of their own, and
where each expert lies, with its digest, to experts.json. The folder stays one of Hugging Face's. It
pays where experts stay in S3: a node fetches the dense part at its start, an expert with one ranged
GET, and can check that expert by itself.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model_code.common.architecture import ModelError, read
from model_code.common.errors import UserError, WeightsError
from model_code.common.manifest import MANIFEST
from model_code.common.safetensors_folder import INDEX, SINGLE, file_of_each
from model_code.moe.experts.index import (
    EXPERTS_FILE,
    Expert,
    ExpertIndex,
    expert_names,
    read_index,
)

DENSE = "dense.safetensors"
_OURS = (EXPERTS_FILE, INDEX, SINGLE, MANIFEST)


def lay_out(folder: Path, out: Path) -> ExpertIndex:
    """Write the checkpoint in `folder` to the new folder `out`, divided; returns the index.

    One layer's experts are in memory at a time.
    """
    try:
        architecture = read(folder)
    except ModelError as error:
        raise WeightsError(str(error)) from error
    if out.exists():
        raise WeightsError(f"{out}: is there already; name a folder that is not")
    index = read_index(folder, architecture)
    names = file_of_each(folder)
    out.mkdir(parents=True)
    routed: set[str] = set()
    files: dict[str, str] = {}
    for layer in index.layers:
        inside = [name for each in expert_names(architecture, layer) for name in each]
        routed |= set(inside)
        files |= _save(folder, names, inside, out / f"experts-layer-{layer:03}.safetensors")
    files |= _save(folder, names, sorted(set(names) - routed), out / DENSE)
    total = sum((out / file).stat().st_size for file in {*files.values()})
    listed = {"metadata": {"total_size": total}, "weight_map": files}
    (out / INDEX).write_text(json.dumps(listed, indent=2, sort_keys=True) + "\n")
    for path in folder.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in _OURS:
            shutil.copy2(path, out / path.name)
    made = read_index(out, architecture)
    made = ExpertIndex(
        {layer: tuple(_digested(out, experts)) for layer, experts in made.layers.items()},
        made.hidden, made.inner, made.active, made.dtype, made.lengths,
    )  # fmt: skip
    (out / EXPERTS_FILE).write_text(made.dump())
    return made


def _save(
    folder: Path, file_of: Mapping[str, str], names: Sequence[str], path: Path
) -> dict[str, str]:
    found: dict[str, Tensor] = {}
    for file in {file_of[name] for name in names}:
        with safe_open(folder / file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in names if file_of[name] == file}
    save_file(found, path, metadata={"format": "pt"})
    return dict.fromkeys(names, path.name)


def _digested(folder: Path, experts: Iterable[Expert]) -> Iterator[Expert]:
    for expert in experts:
        digest = hashlib.sha256()
        for part in expert.parts:
            with (folder / part.file).open("rb") as file:
                file.seek(part.start)
                digest.update(file.read(part.bytes))
        yield Expert(expert.parts, digest.hexdigest())


def main(arguments: Sequence[str] | None = None) -> int:
    """Divide a checkpoint; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model_code.moe.experts.layout")
    parser.add_argument("folder", type=Path, help="a Hugging Face folder")
    parser.add_argument("out", type=Path, help="the folder to write")
    given = parser.parse_args(arguments)
    try:
        index = lay_out(given.folder, given.out)
    except UserError as error:
        print(f"layout: {error}", file=sys.stderr)
        return 1
    print(
        f"{given.out}: {index.count:,} experts of {index.expert_bytes:,} bytes in "
        f"{len(index.layers)} files"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
