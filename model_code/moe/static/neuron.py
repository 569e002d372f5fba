"""Compiles the static form for Neuron, and looks whether there is any.

Nothing here was run on Inferentia: what was, is the static form in torch.export and on the CPU. The
calls are those of the Neuron documentation, "PyTorch NeuronX Tracing API for Inference".
"""

import importlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model_code.common.errors import SettingsError

Graph = Callable[..., Sequence[Tensor]]
DEVICE = Path("/dev/neuron0")  # the driver makes one for each chip
# An Inferentia2 chip has two NeuronCores and 32 GiB (Neuron documentation, "Inferentia2
# Architecture"); a graph runs on one core.
CORE_BYTES = 16 << 30


def present() -> bool:
    """Whether this machine has a Neuron device.

    Raises:
        SettingsError: It has one, and nothing to compile for it with.
    """
    if not DEVICE.exists():
        return False
    if find_spec("torch_neuronx") is None:
        raise SettingsError(
            f"{DEVICE} is there and torch_neuronx is not installed; take a Neuron image, or run in "
            f"the virtual environment of a Neuron DLAMI"
        )
    return True


def compile_graph(module: nn.Module, example: Sequence[Tensor], path: Path, work: Path) -> None:
    """Compile a module for shapes like the example's, and store it."""
    neuronx: Any = importlib.import_module("torch_neuronx")
    # Weights beside the graph: inlined, each bucket's file would be as large as the model.
    traced = neuronx.trace(
        module, tuple(example), compiler_workdir=str(work), inline_weights_to_neff=False
    )
    torch.jit.save(traced, str(path))


def load_graph(path: Path) -> Graph:
    """Return a compiled graph; importing torch_neuronx registers what runs it."""
    importlib.import_module("torch_neuronx")
    graph: Graph = torch.jit.load(str(path))
    return graph
