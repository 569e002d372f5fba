"""SmolLM2-135M as other measurements want it: in other bits for llama.cpp, and text to read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

from model_code.common.gguf_model import find_gguf

ROOT = Path(__file__).parents[1]
_WEIGHTS = ROOT / ".isomorph/cache/weights/smollm2-135m-instruct"


def weights() -> Path:
    """Return the folder with SmolLM2's GGUF file, Q4_1."""
    return Path(os.environ.get("ISOMORPH_TEST_WEIGHTS", _WEIGHTS))


def text() -> str:
    """Return English prose that every Python has: its own reference."""
    return "\n".join(topics[name] for name in sorted(topics))


@contextmanager
def requantised(kind: GGMLQuantizationType) -> Iterator[Path]:
    """Yield a folder in which the same numbers are, in matrices of another kind."""
    reader = GGUFReader(find_gguf(weights()))
    with TemporaryDirectory() as folder:
        writer = GGUFWriter(Path(folder, "smollm2.gguf"), "llama")
        copy_metadata(reader, writer, {})
        for tensor in reader.tensors:
            values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            add(writer, tensor.name, values, kind if values.ndim == 2 else None)
        finish(writer)
        yield Path(folder)


def copy_metadata(reader: GGUFReader, writer: GGUFWriter, changes: dict[str, int]) -> None:
    """Write what a file says of its model and tokenizer, with some whole numbers changed."""
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        inner = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
        value = changes.get(name, field.contents())
        writer.add_key_value(name, value, field.types[0], sub_type=inner)


def add(
    writer: GGUFWriter, name: str, values: np.ndarray, kind: GGMLQuantizationType | None
) -> None:
    """Add a tensor; None is float32."""
    if kind is None:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)


def finish(writer: GGUFWriter) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
