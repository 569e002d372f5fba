"""What is trained, and how: a config of this folder, or a JSON file of the same kind.

{"model": {a Hugging Face config.json}, "training": {the fields of `Training`}}
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from model_code.common.architecture import Architecture, parse
from model_code.common.config_fields import load_json
from model_code.common.errors import UserError

_CONFIGS = Path(__file__).parent / "configs"
Dtype = Literal["float32", "bfloat16"]


class TrainingError(UserError):
    """What a run was given cannot be trained on; the message says what can."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained.

    Args:
        context: Tokens of a sequence.
        batch: Sequences of a step, over all ranks.
        micro_batch: Sequences that a rank computes at once.
        rate: Of AdamW, after the warm-up; it falls to a tenth along a cosine.
        warm_up: Steps until the rate is whole.
        decay: Weight decay of matrices.
        clip: Largest norm of the gradient.
        gamma: By how much the wish for an expert is corrected each step.
        balance: Weight of the balance term of single sequences.
        dtype: Of the products; weights, gradients' sums and the optimizer are in float32.
        recompute: Compute a layer again on the way back, in place of keeping what it made.
        expert_parallel: Ranks that share the experts; a divisor of the ranks and of the experts.
        device_memory_gb: Of one device, in 10^9 bytes; what a dry run compares with.
    """

    context: int
    batch: int
    micro_batch: int
    rate: float
    warm_up: int = 20
    decay: float = 0.1
    clip: float = 1.0
    gamma: float = 0.001
    balance: float = 0.0001
    dtype: Dtype = "float32"
    recompute: bool = False
    expert_parallel: int = 1
    device_memory_gb: float = 16.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model and how it is trained. `source` is what messages begin with."""

    name: str
    source: str
    model: Mapping[str, Any]
    training: Training = field()

    @cached_property
    def architecture(self) -> Architecture:
        """The model. Raises ModelError, or TrainingError for what only serving can do."""
        found = parse(self.model, source=f"{self.source}: model", name=self.name)
        if any(layer.attention.window is not None for layer in found.layers):
            raise TrainingError(
                f"{self.source}: model has layers with a window; this trainer takes those that see "
                f"the whole sequence"
            )
        if self.training.context > found.context:
            raise TrainingError(
                f"{self.source}: training.context is {self.training.context}; the model's "
                f"max_position_embeddings is {found.context}"
            )
        return found


def load_recipe(name: str) -> Recipe:
    """Return the config called `name` in this folder, or the one in that file.

    Raises:
        TrainingError: There is none, or it is wrong.
        ModelError: Its model is.
    """
    path = Path(name) if name.endswith(".json") else _CONFIGS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in _CONFIGS.glob("*.json")))
        raise TrainingError(f"--config is {name!r}; allowed are {known}, or a .json file")
    content = load_json(path)
    if set(content) != {"model", "training"} or not all(
        isinstance(part, dict) for part in content.values()
    ):
        raise TrainingError(f"{path}: holds {', '.join(content)}; allowed are model and training")
    training = _training(content["training"], str(path))
    recipe = Recipe(name=path.stem, source=str(path), model=content["model"], training=training)
    recipe.architecture  # noqa: B018  (refuses what cannot be trained)
    return recipe


def _training(values: dict[str, Any], source: str) -> Training:
    kinds = {each.name: each.type for each in fields(Training)}
    for key, value in values.items():
        if key not in kinds:
            raise TrainingError(f"{source}: training.{key} is unknown; known: {', '.join(kinds)}")
        _check(key, value, kinds[key], source)
    missing = [key for key in ("context", "batch", "micro_batch", "rate") if key not in values]
    if missing:
        raise TrainingError(f"{source}: training.{missing[0]} is missing")
    return Training(**values)


def _check(key: str, value: object, kind: Any, source: str) -> None:
    positive = key not in ("warm_up", "decay", "gamma", "balance")
    low = "more than 0" if positive else "0 or more"
    if kind is bool:
        good, allowed = isinstance(value, bool), "true or false"
    elif kind is int:
        good, allowed = type(value) is int and value >= positive, f"a whole number, {low}"
    elif kind is float:
        good = type(value) in (int, float) and (value > 0 if positive else value >= 0)  # type: ignore[operator]
        allowed = f"a number, {low}"
    else:
        good, allowed = value in get_args(kind), " or ".join(get_args(kind))
    if not good:
        raise TrainingError(f"{source}: training.{key} is {json.dumps(value)}; allowed is {allowed}")
