"""What each rank would hold: the real wrapping on the meta device, under a process group of none.

No memory is taken and nothing is sent: torch's fake process group says that there are so many
ranks, the model is built without numbers, FSDP2 and the expert parallel table are put around it,
and the bytes of the parts that are this rank's are added up. The first rank's, which are never
fewer than another's.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from model_code.moe.train.language_model import LanguageModel
from model_code.moe.train.parallel import check_ranks, local, recompute_layers, shard
from model_code.moe.train.recipe import Recipe, TrainingError

_MOST_RANKS = 65_536
_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Bytes that one rank holds.

    Args:
        gathered: Of the largest two parts that are whole at a time, in the products' dtype: the one
            that computes, and the next, which is on its way.
        whole_parameters: Parameters of the whole model, a number and not bytes.
    """

    recipe: Recipe
    ranks: int
    parameters: int
    gradients: int
    optimizer: int
    buffers: int
    gathered: int
    whole_parameters: int

    @property
    def total(self) -> int:
        """All of them."""
        stored = self.parameters + self.gradients + self.optimizer + self.buffers
        return stored + self.gathered

    @property
    def fits(self) -> bool:
        """Whether they leave something of a device's memory for activations."""
        return self.total < self.recipe.training.device_memory_gb * _GB

    def __str__(self) -> str:
        """A table, in GB of 10^9 bytes."""
        training = self.recipe.training
        rows = [
            ("parameters, float32", self.parameters), ("gradients, float32", self.gradients),
            ("AdamW's two means, float32", self.optimizer), ("buffers", self.buffers),
            (f"gathered to compute, {training.dtype}", self.gathered), ("together", self.total),
        ]  # fmt: skip
        lines = [
            f"{self.recipe.name}: {self.whole_parameters:,} parameters over {self.ranks} ranks, "
            f"experts shared by {training.expert_parallel}; a rank holds, in GB (10^9 bytes):",
            *(f"  {name:<34}{count / _GB:>10.3f}" for name, count in rows),
        ]
        left = training.device_memory_gb - self.total / _GB
        verdict = f"leaves {left:.1f} for activations" if self.fits else "does not fit"
        return "\n".join([*lines, f"of {training.device_memory_gb:g}: {verdict}"])


def weigh(recipe: Recipe, ranks: int) -> Weight:
    """Return what a rank of so many would hold.

    Raises:
        TrainingError: The recipe cannot be divided among them.
    """
    if not 1 <= ranks <= _MOST_RANKS:
        raise TrainingError(
            f"--ranks is {ranks}; allowed are whole numbers from 1 to {_MOST_RANKS}"
        )
    check_ranks(recipe, ranks)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        model = LanguageModel(recipe)
        whole = sum(each.numel() for each in model.parameters())
        if recipe.training.recompute:
            recompute_layers(model)
        shard(model, recipe, ranks, "cpu")
        return _weighed(model, recipe, ranks, whole)
    finally:
        dist.destroy_process_group()


def _weighed(model: LanguageModel, recipe: Recipe, ranks: int, whole: int) -> Weight:
    held = _bytes(local(each) for each in model.parameters())
    return Weight(
        recipe=recipe, ranks=ranks, parameters=held, gradients=held, optimizer=2 * held,
        buffers=_bytes(model.buffers()), gathered=_gathered(model, recipe),
        whole_parameters=whole,
    )  # fmt: skip


def _gathered(model: LanguageModel, recipe: Recipe) -> int:
    """Return the bytes of the root's own parameters and of the largest two layers, when whole.

    Of experts, "whole" is what this rank has of them.
    """
    width = getattr(torch, recipe.training.dtype).itemsize
    blocks = sorted((_whole(block) for block in model.decoder.layers), reverse=True)
    root = _whole(model) - sum(blocks)
    return width * (root + sum(blocks[:2]))


def _whole(module: nn.Module) -> int:
    """Return how many numbers a module's parameters have once their FSDP groups are gathered."""
    total = 0
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            assert isinstance(parameter, DTensor)  # noqa: S101
            mesh, names = parameter.device_mesh, parameter.device_mesh.mesh_dim_names or ()
            sharing = "copies" if "copies" in names else "ranks"
            total += local(parameter).numel() * mesh.size(names.index(sharing))
    return total


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)
