"""GGUF files for a peer to read: the same numbers as another file's in other bits, or random."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize


@contextmanager
def requantised(source: Path, kind: GGMLQuantizationType) -> Iterator[Path]:
    """Yield a folder with a file in which the same numbers are, in matrices of another kind."""
    reader = GGUFReader(source)
    with TemporaryDirectory() as folder:
        name = reader.fields["general.architecture"].contents()
        writer = GGUFWriter(Path(folder, source.name), name)
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
