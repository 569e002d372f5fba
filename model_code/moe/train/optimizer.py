"""AdamW over a model whose parameters may be on two tables of ranks, and its rate."""

import math

import torch
from torch import nn

from model_code.moe.train.experts import mixtures
from model_code.moe.train.language_model import LanguageModel
from model_code.moe.train.recipe import Recipe, Training

_LEAST_RATE = 0.1  # of the whole one, at the last step


def make_optimizer(model: LanguageModel, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with a place for all that it keeps, so that a checkpoint can be read into it.

    Experts have a group of their own: AdamW takes a group's tensors together, and those of two
    meshes do not go together. Vectors (norms, biases) do not decay.
    """
    experts = {id(p) for each in mixtures(model) for p in each.experts.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        key = id(parameter) in experts, parameter.dim() > 1
        groups.setdefault(key, []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": group, "weight_decay": recipe.training.decay if matrix else 0.0}
         for (_, matrix), group in groups.items()],
        lr=recipe.training.rate, betas=(0.9, 0.95),
    )  # fmt: skip
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def rate_of(step: int, steps: int, training: Training) -> float:
    """Return the rate of the step after `step`: it rises, then falls along a cosine to the last."""
    if step < training.warm_up:
        return training.rate * (step + 1) / training.warm_up
    left = max(steps - training.warm_up, 1)
    wave = 0.5 + 0.5 * math.cos(math.pi * min((step - training.warm_up) / left, 1))
    return training.rate * (_LEAST_RATE + (1 - _LEAST_RATE) * wave)
