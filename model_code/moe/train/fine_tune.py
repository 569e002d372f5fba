"""Trains a pruned folder on, with its zeros kept, and says what text costs it before and after."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from model_code.common.checkpoint import all_sources
from model_code.common.config_fields import load_json
from model_code.common.safetensors_folder import SafetensorsFolder, write_folder
from model_code.moe.train.data import Data, Sequences
from model_code.moe.train.language_model import LanguageModel, load_weights, place
from model_code.moe.train.recipe import Recipe, Training, TrainingError
from model_code.moe.train.run import train
from model_code.moe.train.sparsity import Masks, Sparsity

_CONTEXT, _BATCH, _WARM_UP = 128, 8, 10


def recipe_of(folder: Path, *, rate: float) -> Recipe:
    """Return how a folder's model is trained on."""
    config = load_json(folder / "config.json")
    training = Training(
        context=_CONTEXT, batch=_BATCH, micro_batch=_BATCH, rate=rate, warm_up=_WARM_UP
    )
    name = str(config.get("model_type", "model"))
    return Recipe(name=name, source=str(folder / "config.json"), model=config, training=training)


def check_data(data: Data, folder: Path) -> None:
    """Refuse shards that were not made with the folder's tokenizer, or of which none is held out.

    Raises:
        TrainingError: They do not fit.
    """
    if data.held_out is None:
        raise TrainingError(
            f"{data.source}: holds no held-out shard to compare losses on; "
            f"`python -m model_code.moe.train.shards --held-out TOKENS` makes one"
        )
    path = folder / "tokenizer.json"
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"
    if found != (wanted := data.held_out.header.tokenizer):
        raise TrainingError(
            f"{data.source}: vocabulary mismatch: its shards were made with tokenizer "
            f"{wanted:.16}..., that of {folder} is {found:.16}; make shards with "
            f"--tokenizer {path}"
        )


@torch.no_grad()
def loss_of(folder: Path, data: Data, recipe: Recipe) -> float:
    """Return the loss of a folder's model on the held-out shard, in nats a token."""
    assert data.held_out is not None  # noqa: S101  check_data
    model = LanguageModel(recipe)
    place(model, torch.device("cpu"))
    load_weights(model, folder)
    sequences = Sequences([data.held_out], tokens=recipe.training.context, seed=None)
    size = min(recipe.training.micro_batch, sequences.total)
    rounds = sequences.total // size
    losses = [model(sequences.batch(number * size, size)).item() for number in range(rounds)]
    return sum(losses) / rounds


def fine_tune(
    folder: Path, data: Data, recipe: Recipe, out: Path, *, sparsity: Sparsity | None, steps: int,
    seed: int,
) -> None:  # fmt: skip
    """Train a folder's model on, and write it to `out`; with a sparsity its zeros stay zeros.

    Every tensor keeps its dtype; those that the decoder does not have (layers that predict further
    tokens) stay as they are.
    """
    keep = _masks(folder, recipe, sparsity) if sparsity else lambda _: None
    trained = train(recipe, data=data.source, steps=steps, seed=seed, weights=folder,
                    on_update=keep)  # fmt: skip
    found = {source.name: source for source in all_sources(trained.decoder)}
    files = SafetensorsFolder(folder, recipe.architecture)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in files.names():
            before = files.tensor(name)
            source = found.get(name)
            after = before if source is None else source.order.theirs(source.place.detach())
            yield name, after.to(before.dtype)

    write_folder(tensors(), dict(recipe.model), out)


def _masks(folder: Path, recipe: Recipe, sparsity: Sparsity) -> Masks:
    model = LanguageModel(recipe)
    place(model, torch.device("cpu"))
    load_weights(model, folder)
    return Masks(model.decoder, sparsity.matrices)
