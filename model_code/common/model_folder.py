"""A model that can speak, from a folder: decoder, tokenizer and chat template."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from model_code.common.architecture import Architecture, ModelError, read
from model_code.common.chat import folder_template
from model_code.common.checkpoint import load_decoder, tensor_names
from model_code.common.decoder import Decoder
from model_code.common.errors import WeightsError
from model_code.common.gguf_header import read_header
from model_code.common.gguf_model import architecture_of, check_context, find_gguf
from model_code.common.gguf_tensors import GGUFTensors
from model_code.common.safetensors_folder import SafetensorsFolder
from model_code.common.tokenizer import FolderTokenizer, GGUFTokenizer, TextTokenizer


@dataclass(frozen=True, kw_only=True)
class Model:
    """What an engine needs. `chat_template` is Jinja, None if the weights bring none."""

    decoder: Decoder
    tokenizer: TextTokenizer
    chat_template: str | None


# Changes a decoder before it is filled.
Prepare = Callable[[Decoder], None]


def load_folder(
    folder: Path, *, context: int, dtype: torch.dtype, quantization: str = "none",
    prepare: Prepare | None = None,
) -> Model:  # fmt: skip
    """Load what `folder` holds: a Hugging Face folder if it has a config.json, else a GGUF file.

    `prepare` may change the decoder of a Hugging Face folder before it is filled; what it takes out
    is not read, and its files may be missing.

    Raises:
        SettingsError: The context is longer than the model's.
        WeightsError: Something is missing, damaged or of another model.
    """
    if (folder / "config.json").is_file():
        return _from_safetensors(folder, context, dtype, quantization, prepare)
    path = find_gguf(folder)
    header = read_header(path)
    architecture = architecture_of(header)
    check_context(context, architecture)
    tensors = GGUFTensors(header, architecture)
    tensors.check_complete(_names(architecture))
    decoder = load_decoder(
        architecture, tensors.rows, context=context, dtype=dtype, quantization=quantization
    )
    return Model(
        decoder=decoder, tokenizer=GGUFTokenizer(header), chat_template=header.chat_template
    )


def _from_safetensors(
    folder: Path, context: int, dtype: torch.dtype, quantization: str, prepare: Prepare | None
) -> Model:
    try:
        architecture = read(folder)
    except ModelError as error:
        raise WeightsError(str(error)) from error
    check_context(context, architecture)
    tokenizer = FolderTokenizer(folder, architecture.vocabulary)  # before the gigabytes
    tensors = SafetensorsFolder(folder, architecture, partial=prepare is not None)
    tensors.check_complete(_names(architecture))
    decoder = load_decoder(
        architecture, tensors, context=context, dtype=dtype, quantization=quantization,
        prepare=prepare,
    )  # fmt: skip
    return Model(decoder=decoder, tokenizer=tokenizer, chat_template=folder_template(folder))


def _names(architecture: Architecture) -> set[str]:
    with torch.device("meta"):  # names only: what does not fit is said before anything is read
        return tensor_names(Decoder(architecture, context=1, dtype=torch.float32))
