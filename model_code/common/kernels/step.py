"""A few new tokens through all of a decoder's layers, in one call of C++.

The modules of the decoder do the same, one of torch's operations after the other, and each of these
takes longer than the work in it when there are few tokens. Between matrices this computes in
float32: it equals the modules within 1e-4 of the largest in float32, and within what rounding
leaves in bfloat16 (3e-2) and beside weights of few bits, whose inputs may be rounded to the next
number.

Shape letters: B sequences, S new tokens of each, R rows (B x S), D model width.
"""

import ctypes
import functools
import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from model_code.common import kernels
from model_code.common.cache import KVCache
from model_code.common.kernels import KINDS, layout
from model_code.common.kernels.describe import OtherPartError, layer, parts_of, stale
from model_code.common.span import Span

if TYPE_CHECKING:
    from model_code.common.decoder import Decoder

_LOG = logging.getLogger(__name__)
MOST_ROWS = 64  # as in step.h
_FEW_ROWS = 16  # of more, torch's products are faster where the CPU has instructions for bfloat16


class _Table:
    """Where a decoder's numbers are. Made once: modules are looked through in milliseconds."""

    def __init__(self, decoder: "Decoder") -> None:
        self.parts = parts_of(decoder)
        self.layers: Any = None
        self.most_chosen = max(each.feed_forward.active for each in decoder.architecture.layers)
        self.caches: WeakKeyDictionary[KVCache, Any] = WeakKeyDictionary()
        self.norm = layout.Vector.of(decoder.norm.weight)
        try:
            found = [layer(*each) for each in zip(decoder.layers, decoder.rotaries, strict=True)]
        except OtherPartError:
            return
        self.layers = (layout.Layer * len(found))(*found)

    def kept(self, cache: KVCache) -> Any:
        """Return where a cache's layers are, or None if they are not what the step knows."""
        if cache not in self.caches:
            self.caches[cache] = self._kept(cache)
        return self.caches[cache]

    def _kept(self, cache: KVCache) -> Any:
        if cache.table is not None or len(cache.layers) != len(self.layers):
            return None
        found = []
        for each, of in zip(cache.layers, self.layers, strict=True):
            keys, values = each.stores
            part = of.attention
            fits = keys.shape[1] == part.kv_heads and keys.shape[3] == part.width
            if not fits or keys.dtype not in KINDS or keys.device.type != "cpu":
                return None
            found.append(
                layout.Kept(keys.data_ptr(), values.data_ptr(), KINDS[keys.dtype], keys.shape[2])
            )
        return (layout.Kept * len(found))(*found)


_TABLES: "WeakKeyDictionary[Decoder, _Table]" = WeakKeyDictionary()


def run(decoder: "Decoder", x_BSD: Tensor, cache: KVCache, span: Span) -> Tensor | None:
    """Return the normed states [B, S, D] of a few tokens, or None if the modules have to.

    Args:
        decoder: Its layers, norms and rotary embeddings are used.
        x_BSD: Embeddings; overwritten.
        cache: The new tokens' keys and values stay there.
        span: Where the tokens stand.
    """
    if not (_few(x_BSD, cache, span, decoder.context) and _trusted()):
        return None
    table = _table(decoder)
    kept = table.kept(cache) if table.layers is not None else None
    # A longer run goes round a ring over what its own first tokens still see.
    if kept is None or (span.tokens > 1 and any(span.visible > each.length for each in kept)):
        return None
    return _step(decoder, table, kept, x_BSD, span)


def _few(x_BSD: Tensor, cache: KVCache, span: Span, context: int) -> bool:
    return (
        span.positions_BS.numel() <= _most_rows()
        and type(cache) is KVCache and span.visible <= min(cache.context, context)
        and span.slots.stop <= cache.slots and x_BSD.dtype in KINDS
        and not torch.is_grad_enabled() and kernels.usable(x_BSD)
    )  # fmt: skip


@functools.cache
def _most_rows() -> int:
    return _FEW_ROWS if torch.ops.mkldnn._is_mkldnn_bf16_supported() else MOST_ROWS


def _table(decoder: "Decoder") -> _Table:
    table = _TABLES.get(decoder)
    if table is None or stale(table.parts):
        table = _TABLES[decoder] = _Table(decoder)
    return table


def _step(decoder: "Decoder", table: _Table, kept: Any, x_BSD: Tensor, span: Span) -> Tensor:
    width = x_BSD.shape[-1]
    x_RD = x_BSD.reshape(-1, width).float()
    rows = len(x_RD)
    states_RD = torch.empty(rows, width)
    positions_BS = span.positions_BS.to(torch.int64)
    if span.real_BS is not None:
        positions_BS = positions_BS.where(span.real_BS, -1)
    positions_R = positions_BS.flatten().contiguous()
    choices = torch.empty(len(table.layers), rows * table.most_chosen, dtype=torch.int64)
    library = kernels.loaded()
    assert library is not None  # noqa: S101  kernels.usable() said so
    library.isomorph_step(
        ctypes.byref(
            layout.Step(
                layers=ctypes.addressof(table.layers), kept=ctypes.addressof(kept),
                layer_count=len(table.layers), rows=rows, width=width,
                first_slot=span.slots.start, tokens=span.tokens, positions=positions_R.data_ptr(),
                x=x_RD.data_ptr(), states=states_RD.data_ptr(), choices=choices.data_ptr(),
                most_chosen=table.most_chosen, norm=table.norm, eps=decoder.norm.eps,
                offset=decoder.norm.offset, threads=torch.get_num_threads(),
            )
        )
    )  # fmt: skip
    if table.most_chosen:
        _tell(decoder, choices, rows)
    return states_RD.to(x_BSD.dtype).view(x_BSD.shape)


def _tell(decoder: "Decoder", choices: Tensor, rows: int) -> None:
    """Tell who watches a layer's experts what the tokens chose there."""
    for block, chosen in zip(decoder.layers, choices, strict=True):
        part: Any = block.feed_forward
        if getattr(part, "watch", None) is not None:
            active = part.router.active
            part.watch(chosen[: rows * active].view(rows, active))


@functools.cache
def _trusted() -> bool:
    """Compare with the modules, once: a compiler's mistake must not become a wrong answer."""
    found, expected = _trial(one_call=True), _trial(one_call=False)
    if (found - expected).abs().max() < 1e-4 * expected.abs().max():
        return True
    _LOG.warning("a step in one call does not agree with the modules; they do the work")
    return False


@torch.inference_mode()
def _trial(*, one_call: bool) -> Tensor:
    """Return the states of three tokens in a small decoder, whose numbers are waves."""
    from model_code.common.architecture import parse
    from model_code.common.decoder import Decoder

    small = {
        "model_type": "llama", "hidden_size": 40, "intermediate_size": 56, "vocab_size": 8,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 4, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    decoder = Decoder(parse(small), context=4, dtype=torch.float32).requires_grad_(False)
    for phase, parameter in enumerate(decoder.parameters()):
        wave = torch.arange(parameter.numel(), dtype=torch.float32).add_(phase).mul_(1.7).sin_()
        parameter.copy_(wave.view_as(parameter))
    cache = KVCache(decoder.architecture, slots=2, context=4, dtype=torch.float32)
    found = []
    for position in range(3):
        span = Span(0, torch.tensor([position, 0]), 1)
        x_BSD = decoder.embed(torch.tensor([[position], [position + 1]]))
        if one_call:
            table = _Table(decoder)
            found.append(_step(decoder, table, table.kept(cache), x_BSD, span))
        else:
            found.append(decoder.through_modules(x_BSD, cache, span))
    return torch.cat(found)
