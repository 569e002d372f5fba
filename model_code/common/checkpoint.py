"""Fills a `Decoder` from tensors with Hugging Face's names, wherever they are stored."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from model_code.common import huge_pages
from model_code.common.architecture import Architecture
from model_code.common.decoder import Decoder
from model_code.common.errors import WeightsError
from model_code.common.quantize import Quantizable
from model_code.common.tensor_names import Same, Source, sources

_CHECKED = 1 << 20  # numbers whose sum is looked at, or a row's


class Rows(NamedTuple):
    """A tensor that is read piece by piece: its first rows, the next ones, and so on."""

    shape: tuple[int, ...]
    pieces: Iterator[Tensor]


def load_decoder(
    architecture: Architecture,
    tensor: Callable[[str], Tensor | Rows],
    *,
    context: int,
    dtype: torch.dtype,
    quantization: str = "none",
    prepare: Callable[[Decoder], None] | None = None,
) -> Decoder:
    """Return the model, each tensor read once, straight into its place: never twice the memory.

    With int8 or int4 a matrix is packed as soon as it is read, and its floats are given back: those
    that wait for their numbers take no memory yet, since nothing has been written there.

    `prepare` may change the decoder before it is filled. `tensor` returns the tensor with a name of
    Hugging Face's, in any dtype and in one piece or several, or raises WeightsError.
    """
    decoder = Decoder(architecture, context=context, dtype=dtype).requires_grad_(False).eval()
    if prepare is not None:
        prepare(decoder)
    for name in [name for name, _ in stored(decoder)]:
        owner, _, own_name = name.rpartition(".")
        module = decoder.get_submodule(owner)
        place = huge_pages.advise(getattr(module, own_name))
        for source in sources(architecture, name, place):
            fill(source, tensor(source.name))
        if quantization != "none" and isinstance(module, Quantizable):
            module.quantize(own_name, quantization)
    return decoder


def stored(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers that a checkpoint holds."""
    yield from decoder.named_parameters()
    yield from decoder.named_buffers()


def all_sources(decoder: Decoder) -> Iterator[Source]:
    """Yield every tensor of the checkpoint that the model is made of."""
    for name, place in stored(decoder):
        yield from sources(decoder.architecture, name, place)


def tensor_names(decoder: Decoder) -> set[str]:
    """Return Hugging Face's names of all tensors that the model is made of."""
    return {source.name for source in all_sources(decoder)}


def fill(source: Source, given: Tensor | Rows) -> None:
    """Copy a checkpoint's tensor to its place. Raises WeightsError if it does not fit there."""
    expected = source.order.shape(source.place.shape)
    if given.shape != expected:
        raise WeightsError(
            f"{source.name} has shape {tuple(given.shape)}, the model's config says "
            f"{tuple(expected)}"
        )
    if isinstance(given, Tensor):
        source.place.copy_(source.order.ours(given))
    elif isinstance(source.order, Same):
        row = 0
        for piece in given.pieces:
            source.place[row : row + len(piece)] = piece
            row += len(piece)
    else:
        source.place.copy_(source.order.ours(torch.cat([*given.pieces])))
    if not _finite(source.place):
        raise WeightsError(f"{source.name} holds values that are not finite")


def _finite(place: Tensor) -> bool:
    """Whether all numbers are: by sums, which need no mask in memory.

    Some rows at a time, since torch makes floats of all that it adds up.
    """
    rows = max(1, _CHECKED * len(place) // max(1, place.numel()))
    return all(bool(some.sum(dtype=torch.float32).isfinite()) for some in place.split(rows))
