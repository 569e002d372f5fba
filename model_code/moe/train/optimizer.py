"""AdamW over a model whose parameters may be on two tables of ranks, and its rate."""

import math

import torch
from torch import nn
from torch.optim.adamw import adamw

from model_code.moe.train.parallel import local
from model_code.moe.train.recipe import Training

_LEAST_RATE = 0.1  # of the whole one, at the last step


class AdamW:
    """AdamW over what this rank holds of each parameter, and what it keeps of each.

    Of `torch.optim.AdamW` only the function: the class takes a shared parameter through DTensor's
    rules for every product, and imports torch's compiler first. What AdamW computes of an element
    depends on no other one, so the parts do. Vectors (norms, biases) do not decay.

    Args:
        model: Its parameters stay where they are from here on.

    Attributes:
        steps: That were made: of a run that goes on, also those before.
        mean: Of each parameter's gradients, as large and as divided as the parameter.
        square: Of their squares.
    """

    def __init__(self, model: nn.Module, training: Training) -> None:
        parameters = list(model.parameters())
        self.steps = 0
        self.mean = {parameter: torch.zeros_like(parameter) for parameter in parameters}
        self.square = {parameter: torch.zeros_like(parameter) for parameter in parameters}
        matrices = [each for each in parameters if each.dim() > 1]
        vectors = [each for each in parameters if each.dim() <= 1]
        self._groups = [(matrices, training.decay), (vectors, 0.0)]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Change all parameters that have a gradient, and take the gradients away."""
        for group, decay in self._groups:
            learnt = [each for each in group if each.grad is not None]
            adamw(
                [local(each) for each in learnt],
                [local(each.grad) for each in learnt if each.grad is not None],
                [local(self.mean[each]) for each in learnt],
                [local(self.square[each]) for each in learnt],
                [],
                [torch.tensor(float(self.steps)) for _ in learnt],  # it adds one to each
                amsgrad=False, beta1=0.9, beta2=0.95, lr=rate, weight_decay=decay, eps=1e-8,
                maximize=False,
            )  # fmt: skip
            for each in group:
                each.grad = None
        self.steps += 1


def rate_of(step: int, steps: int, training: Training) -> float:
    """Return the rate of the step after `step`: it rises, then falls along a cosine to the last."""
    if step < training.warm_up:
        return training.rate * (step + 1) / training.warm_up
    left = max(steps - training.warm_up, 1)
    wave = 0.5 + 0.5 * math.cos(math.pi * min((step - training.warm_up) / left, 1))
    return training.rate * (_LEAST_RATE + (1 - _LEAST_RATE) * wave)
