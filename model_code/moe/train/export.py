"""`python -m model_code.moe.train.export CHECKPOINTS FOLDER`: a checkpoint for serving.

CHECKPOINTS is one checkpoint, or the folder of a run, whose newest is taken. FOLDER gets a
config.json, safetensors with Hugging Face's names, and the tokenizer. One parameter is read at a
time, by one process, whatever number of ranks wrote it.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model_code.common.checkpoint import stored
from model_code.common.config_fields import ModelError
from model_code.common.errors import UserError
from model_code.common.safetensors_folder import write_folder
from model_code.common.tensor_names import sources
from model_code.common.text import END
from model_code.moe.train.checkpoints import newest, read_progress, read_tensors
from model_code.moe.train.data import TOKENIZER
from model_code.moe.train.language_model import LanguageModel
from model_code.moe.train.recipe import Recipe, Training, TrainingError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def export(checkpoint: Path, folder: Path, *, dtype: str = "float32") -> int:
    """Write a checkpoint as a Hugging Face folder, whole or not at all; return its step.

    Raises:
        TrainingError: There is no whole checkpoint, or the folder is not empty.
    """
    path = newest(checkpoint)
    if path is None:
        raise TrainingError(f"{checkpoint}: holds no whole checkpoint")
    if folder.exists() and any(folder.iterdir()):
        raise TrainingError(f"{folder} is not empty; name a folder that is, or a new one")
    progress = read_progress(path)
    config = {key: value for key, value in progress.model.items() if not key.startswith("_")}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        tensors = _tensors(path, _model(progress.model, path), DTYPES[dtype])
        write_folder(tensors, config | {"dtype": dtype, "torch_dtype": dtype}, made)
        if (path / TOKENIZER).is_file():
            _add_tokenizer(path / TOKENIZER, made)
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    return progress.step


def _model(config: object, path: Path) -> LanguageModel:
    assert isinstance(config, dict)  # noqa: S101
    training = Training(context=1, batch=1, micro_batch=1, rate=1.0)
    return LanguageModel(Recipe(name="", source=str(path), model=config, training=training))


def _tensors(path: Path, model: LanguageModel, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors by Hugging Face's names; buffers stay in float32, as transformers' do."""
    for name, place in stored(model.decoder):
        whole = torch.empty(place.shape, dtype=place.dtype)
        read_tensors(path, {f"model.{name}": whole})
        kept = whole.dtype if name.endswith(".correction") else dtype
        for source in sources(model.decoder.architecture, name, whole):
            # Several of theirs may be parts of one of ours; a file holds each by itself.
            yield source.name, source.order.theirs(source.place).to(kept).clone()


def _add_tokenizer(tokenizer: Path, folder: Path) -> None:
    shutil.copyfile(tokenizer, folder / TOKENIZER)
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if END in tokenizer.read_text(encoding="utf-8"):
        words["eos_token"] = END
    (folder / "tokenizer_config.json").write_text(json.dumps(words, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a checkpoint; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model_code.moe.train.export")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINTS")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new or an empty one")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    given = parser.parse_args(arguments)
    try:
        step = export(given.checkpoint, given.folder, dtype=given.dtype)
    except (UserError, ModelError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"export: {given.folder}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{given.folder}: step {step}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
