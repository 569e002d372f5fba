"""Tensors of a GGUF file under Hugging Face's names, dequantised."""

import math
import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from model_code.common.architecture import Architecture
from model_code.common.checkpoint import Rows
from model_code.common.errors import WeightsError
from model_code.common.gguf_header import GGUFHeader, TensorInfo

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {
    "pre": {"post_attention_layernorm": "ffn_norm"},
    "sandwich": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}
_PIECE = 1 << 20  # numbers that are in memory as floats at a time
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


class GGUFTensors:
    """Reads one tensor at a time from the mapped file."""

    def __init__(self, header: GGUFHeader, architecture: Architecture) -> None:
        self._header = header
        first = architecture.layers[0]
        self._names = _NAMES | _NORMS[first.norms]
        self._offset = architecture.norm_offset  # llama.cpp has added it to the weights
        heads = {"self_attn.q_proj": first.attention.heads,
                 "self_attn.k_proj": first.attention.kv_heads}  # fmt: skip
        self._paired_heads = heads if architecture.family == "llama" else {}
        self._data = np.asarray(np.memmap(header.path, dtype=np.uint8, mode="r"))

    def __call__(self, name: str) -> Tensor:
        """Return the tensor that Hugging Face calls `name`, in float32."""
        info = self._info(name)
        return self._values(name, info, 0, info.shape[0])

    def rows(self, name: str) -> Rows:
        """Return the same piece by piece: all its floats at once may be twice the weights."""
        info = self._info(name)
        return Rows(info.shape, self._pieces(name, info))

    def _pieces(self, name: str, info: TensorInfo) -> Iterator[Tensor]:
        count, heads = info.shape[0], self._heads(name)
        group = 1 if heads == 1 else count // heads  # whole heads: their rows change places
        step = max(1, _PIECE // (group * math.prod(info.shape[1:]))) * group
        for start in range(0, count, step):
            yield self._values(name, info, start, min(start + step, count))

    def _values(self, name: str, info: TensorInfo, start: int, stop: int) -> Tensor:
        """Return the rows from `start` to `stop` - 1."""
        # Not above: an endpoint's image reads safetensors, and has no gguf.
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        data = self._data[info.offset : info.offset + info.nbytes]
        shape = (stop - start, *info.shape[1:])
        try:
            data = data.reshape(info.shape[0], -1)[start:stop].reshape(*shape[:-1], -1)
            values = dequantize(data, GGMLQuantizationType(info.type)).reshape(shape)
        except (ValueError, NotImplementedError) as error:
            raise WeightsError(f"{self._header.path}: {info.name}: {error}") from error
        own = values if values.flags.writeable else values.copy()  # else a view of the file
        tensor = torch.from_numpy(own).float()
        if self._offset and name.endswith("norm.weight"):
            return tensor - self._offset
        heads = self._heads(name)
        return tensor if heads == 1 else _halves_together(tensor, info.shape[0] // heads)

    def _info(self, name: str) -> TensorInfo:
        info = self._header.tensors.get(self._gguf_name(name))
        if info is None:
            raise WeightsError(f"{self._header.path}: {self._gguf_name(name)} is missing")
        return info

    def _heads(self, name: str) -> int:
        """Return into how many heads rows are divided whose order llama.cpp has changed, or 1."""
        match = _IN_LAYER.fullmatch(name)
        return self._paired_heads.get(match[2].rsplit(".", 1)[0], 1) if match else 1

    def check_complete(self, names: set[str]) -> None:
        """Refuse tensors that the model would not use: nothing is dropped in silence."""
        extra = sorted(set(self._header.tensors) - {self._gguf_name(name) for name in names})
        if extra:
            raise WeightsError(
                f"{self._header.path}: holds {', '.join(extra[:3])}, which the native decoder does "
                f"not use; set ISOMORPH_ENGINE=llama.cpp"
            )

    def _gguf_name(self, name: str) -> str:
        """Return what GGUF calls the tensor that Hugging Face calls `name`."""
        match = _IN_LAYER.fullmatch(name)
        prefix, inner = (f"blk.{match[1]}.", match[2]) if match else ("", name)
        stem, kind = inner.rsplit(".", 1)
        return f"{prefix}{self._names[stem]}.{kind}"


def _halves_together(tensor: Tensor, width: int) -> Tensor:
    """Undo llama.cpp's order of a head's rows: the two halves that RoPE turns are interleaved."""
    return tensor.unflatten(0, (-1, width // 2, 2)).transpose(1, 2).reshape(tensor.shape)
