"""The processes of a run: torchrun's, or just this one."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from model_code.moe.train.meeting import torchrun_store
from model_code.moe.train.recipe import TrainingError


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among those that train together.

    Args:
        files: Group for checkpoints, on the CPU: they are written while `count` ranks train.
    """

    index: int
    count: int
    device: torch.device
    files: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this one speaks for all."""
        return self.index == 0

    def add(self, values: Tensor) -> Tensor:
        """Return the sum of all ranks' values; `values` is changed."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def leave(self) -> None:
        """Part from the others."""
        if dist.is_initialized():
            dist.destroy_process_group()


ALONE = Ranks(0, 1, torch.device("cpu"))


def join(device: str) -> Ranks:
    """Return this process's place, by the variables that torchrun sets.

    Args:
        device: cpu, cuda, or auto for cuda where there is one.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device is cuda, and torch finds none; allowed here are cpu and auto")
    place = torch.device(kind)
    if kind == "cuda":
        place = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if "RANK" not in os.environ:
        return Ranks(0, 1, place)
    index, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    if (store := torchrun_store()) is None:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=store, rank=index, world_size=count)
    files = dist.new_group(backend="gloo")
    return Ranks(index, count, place, files)
