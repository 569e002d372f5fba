"""`python -m model_code.common.convert FILE.gguf FOLDER`: a GGUF file into a Hugging Face folder.

Done once: what comes out is mapped into memory, where a GGUF file is dequantised at every start.
The folder has a manifest with the digests of all files, the source's among its words.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import processors
from torch import Tensor

from model_code.common.checkpoint import all_sources, fill
from model_code.common.decoder import Decoder
from model_code.common.errors import UserError, WeightsError
from model_code.common.gguf_header import GGUFHeader, read_header
from model_code.common.gguf_model import architecture_of, config_of
from model_code.common.gguf_tensors import GGUFTensors
from model_code.common.manifest import MANIFEST, Manifest, build_manifest, file_sha256
from model_code.common.safetensors_folder import write_folder
from model_code.common.tensor_names import Source
from model_code.common.tokenizer import GGUFTokenizer

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def convert(source: Path, folder: Path, *, dtype: str) -> Manifest:
    """Write the model in a GGUF file as a Hugging Face folder, and return its manifest.

    At most one file of the output (4 GiB) is in memory at a time.

    Raises:
        WeightsError: The file cannot be read, or the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise WeightsError(f"{folder}: is not empty; name a folder that is, or that is not there")
    header = read_header(source)
    architecture, tensors = architecture_of(header), GGUFTensors(header, architecture_of(header))
    with torch.device("meta"):
        skeleton = Decoder(architecture, context=1, dtype=DTYPES[dtype])
    names = [each.name for each in all_sources(skeleton)]
    tensors.check_complete(set(names))
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(header) | {"dtype": dtype} | _ends(header)
    write_folder(_read(names, tensors, DTYPES[dtype]), config, folder)
    _write_tokenizer(header, folder)
    (folder / "source.json").write_text(
        json.dumps({"file": source.name, "sha256": file_sha256(source)}, sort_keys=True) + "\n"
    )
    manifest = build_manifest(folder, source.stem)
    (folder / MANIFEST).write_bytes(manifest.encode())
    return manifest


def _read(
    names: list[str], tensors: GGUFTensors, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        # Piece by piece: as floats, the largest is several times what is written of it.
        rows = tensors.rows(name)
        tensor = torch.empty(rows.shape, dtype=dtype)
        fill(Source(name, tensor), rows)
        yield name, tensor


def _ends(header: GGUFHeader) -> dict[str, int]:
    """Return the special tokens that a config.json names."""
    keys = ("bos_token_id", "eos_token_id")
    found = {key: header.metadata.get(f"tokenizer.ggml.{key}") for key in keys}
    return {key: value for key, value in found.items() if isinstance(value, int)}


def _write_tokenizer(header: GGUFHeader, folder: Path) -> None:
    ours = GGUFTokenizer(header)
    if ours.start:
        first = header.metadata["tokenizer.ggml.tokens"][ours.start[0]]
        ours.tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first}:0 $A:0", pair=None, special_tokens=[(first, ours.start[0])]
        )
    ours.tokenizer.save(str(folder / "tokenizer.json"))
    words = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if header.chat_template:
        words["chat_template"] = header.chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(words, sort_keys=True) + "\n")


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m model_code.common.convert")
    parser.add_argument("source", type=Path, metavar="FILE.gguf")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new or an empty one")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    given = parser.parse_args(arguments)
    try:
        manifest = convert(given.source, given.folder, dtype=given.dtype)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{given.folder}: {len(manifest.files)} files, {manifest.total_bytes:,} bytes, manifest "
          f"sha256 {manifest.sha256}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
