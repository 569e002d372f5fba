"""Our decoder with experts that learn, its first numbers, and its loss.

Shape letters: B sequences, S tokens of each, E experts, D model width.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn import functional

from model_code.common.checkpoint import all_sources, fill, tensor_names
from model_code.common.decoder import Decoder
from model_code.common.safetensors_folder import SafetensorsFolder
from model_code.common.uncached import states
from model_code.moe.train.experts import TrainedMixture
from model_code.moe.train.recipe import Recipe

_STD = 0.02
_WRAPPED = "_checkpoint_wrapped_module."  # layers that are computed again are in a wrapper


class LanguageModel(nn.Module):
    """Sequences in, loss out: one forward pass, which is what FSDP brings parameters together for.

    Made on the meta device: it takes no memory until it is given some.

    Args:
        micro_batches: Of a step; the balance term of each counts as much less.
    """

    def __init__(self, recipe: Recipe, micro_batches: int = 1) -> None:
        super().__init__()
        architecture, context = recipe.architecture, recipe.training.context
        balance = recipe.training.balance / micro_batches
        with torch.device("meta"):
            self.decoder = Decoder(architecture, context=context, dtype=torch.float32)
            for block, layer in zip(self.decoder.layers, architecture.layers, strict=True):
                if layer.feed_forward.experts:
                    block.feed_forward = TrainedMixture(
                        architecture.hidden, layer.feed_forward, torch.float32, balance=balance
                    )

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Return the mean loss of tokens 1 to S - 1 in [B, S], each from those before it."""
        logits_BSV = self.decoder.logits(states(self.decoder, tokens_BS[:, :-1]))
        return functional.cross_entropy(logits_BSV.flatten(0, 1), tokens_BS[:, 1:].flatten())


def place(model: LanguageModel, device: torch.device) -> None:
    """Give a model memory, whose numbers mean nothing yet."""
    tied = model.decoder.architecture.tied_embeddings
    model.to_empty(device=device)
    if tied:
        model.decoder.head_VD = model.decoder.embedding_VD


@torch.no_grad()
def initialize(model: LanguageModel, recipe: Recipe, seed: int) -> None:
    """Fill a model with its first numbers: the same ones over any number of ranks.

    Matrices are normal, with the config's initializer_range; norms do nothing, biases are 0. What
    has three dimensions (experts, heads) is drawn one by one, so that a rank draws only its own.
    """
    std = float(recipe.model.get("initializer_range", _STD))
    for name, parameter in named(model):
        if parameter.dim() == 1:
            bias = name.endswith("bias") or name.endswith("sinks_N")
            parameter.fill_(0.0 if bias else 1.0 - recipe.architecture.norm_offset)
        else:
            _fill(parameter, lambda words, shape, name=name: _normal(  # type: ignore[misc]
                shape, std, f"{seed}/{name}{words}"))  # fmt: skip
    for buffer in model.buffers():
        buffer.zero_()


@torch.no_grad()
def load_weights(model: LanguageModel, folder: Path) -> None:
    """Fill a model with the numbers in a Hugging Face folder. Raises WeightsError."""
    tensors = SafetensorsFolder(folder, model.decoder.architecture)
    tensors.check_complete(tensor_names(model.decoder))
    for source in all_sources(model.decoder):
        fill(source, tensors(source.name))


def named(model: LanguageModel) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters by the decoder's names, whatever is wrapped around its layers."""
    return [(name.replace(_WRAPPED, ""), each) for name, each in model.decoder.named_parameters()]


def _fill(parameter: Tensor, draw: Callable[[str, torch.Size], Tensor]) -> None:
    """Put this rank's part of what `draw` returns in its place."""
    target, starts = parameter, (0,) * parameter.dim()
    if isinstance(parameter, DTensor):
        target = parameter.to_local()
        _, starts = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
    if parameter.dim() == 2:
        whole = draw("", parameter.shape)
        target.copy_(_cut(whole, starts, target.shape))
        return
    for index, part in enumerate(target):
        whole = draw(f"/{starts[0] + index}", parameter.shape[1:])
        part.copy_(_cut(whole, starts[1:], part.shape))


def _cut(whole: Tensor, starts: tuple[int, ...], shape: torch.Size) -> Tensor:
    for dim, (start, length) in enumerate(zip(starts, shape, strict=True)):
        whole = whole.narrow(dim, min(start, whole.shape[dim]), length)
    return whole


def _normal(shape: torch.Size, std: float, words: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big", signed=True)
    return torch.empty(shape).normal_(std=std, generator=torch.Generator().manual_seed(seed))
