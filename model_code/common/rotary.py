"""Rotary position embedding, plain and stretched beyond the length that a model was trained on.

Shape letters: B sequences, S tokens, N heads, H head width, T positions, F frequencies.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from model_code.common.layers import Rope


class Rotary:
    """Turns pairs of numbers, half a rotated part apart, by an angle that grows with the position.

    Args:
        width: Numbers of a head, of which `rope.fraction` are turned.
        context: Positions to prepare for. LongRoPE takes its long factors if these are more than
            the model was trained on, for every sequence, so that a growing one stays consistent.
        trained: Positions of the model's config, where its rope parameters do not say.
    """

    def __init__(
        self, rope: Rope, width: int, *, context: int, trained: int, dtype: torch.dtype
    ) -> None:
        self.turned = int(width * rope.fraction)
        frequencies_F, magnitude = frequencies(rope, self.turned, context, trained)
        positions_T = torch.arange(context, dtype=torch.float32, device="cpu")
        angles_TF = torch.outer(positions_T, frequencies_F)
        self.cos_TF = (angles_TF.cos() * magnitude).to(dtype)
        self.sin_TF = (angles_TF.sin() * magnitude).to(dtype)
        self._last: tuple[Tensor | None, tuple[Tensor, Tensor]] = None, (self.cos_TF, self.sin_TF)

    def __call__(self, x_BSNH: Tensor, positions_BS: Tensor) -> Tensor:
        """Rotate all heads of each token by the token's position."""
        cos, sin = self._turns(positions_BS)
        left, right = x_BSNH[..., : self.turned].chunk(2, dim=-1)
        parts = [left * cos - right * sin, right * cos + left * sin]
        if self.turned < x_BSNH.shape[-1]:
            parts.append(x_BSNH[..., self.turned :])
        return torch.cat(parts, dim=-1).to(x_BSNH.dtype)

    def _turns(self, positions_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine [B, S, 1, F]; the next layer asks for the same positions again."""
        known, found = self._last
        if known is not positions_BS:
            if self.cos_TF.device != positions_BS.device:  # made on the CPU, moved by the first use
                self.cos_TF = self.cos_TF.to(positions_BS.device)
                self.sin_TF = self.sin_TF.to(positions_BS.device)
            found = self.cos_TF[positions_BS, None], self.sin_TF[positions_BS, None]
            self._last = positions_BS, found
        return found


def frequencies(rope: Rope, width: int, context: int, trained: int) -> tuple[Tensor, float]:
    """Return the angle a position of each pair [F], and what cosine and sine are multiplied by.

    Sources: YaRN arXiv 2309.00071, section 3.3; LongRoPE arXiv 2402.13753; Llama 3.1's by its
    published code. "dynamic" equals the plain one within the model's own context.
    """
    values = dict(rope.parameters)
    exponents_F = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    plain_F = 1.0 / rope.theta**exponents_F
    original = _number(values.get("original_max_position_embeddings"), trained)
    factor = _number(values.get("factor"), trained / original)
    if rope.kind == "linear":
        return plain_F / factor, 1.0
    if rope.kind == "llama3":
        return _llama3(plain_F, values, factor, original), 1.0
    if rope.kind == "yarn":
        return _yarn(plain_F, rope.theta, values, factor, original), _yarn_magnitude(values, factor)
    if rope.kind == "longrope":
        chosen = values["long_factor" if context > original else "short_factor"]
        stretched = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        magnitude = _number(values.get("attention_factor"), stretched)
        return plain_F / torch.tensor(chosen, dtype=torch.float32), magnitude
    return plain_F, 1.0


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default


def _llama3(
    plain_F: Tensor, values: Mapping[str, object], factor: float, original: float
) -> Tensor:
    """Leave short waves as they are, stretch long ones, and go over smoothly in between."""
    low, high = _number(values["low_freq_factor"], 1), _number(values["high_freq_factor"], 4)
    turns_F = original * plain_F / (2 * math.pi)  # within the trained length
    share_F = ((turns_F - low) / (high - low)).clamp(0, 1)
    return plain_F * (share_F + (1 - share_F) / factor)


def _yarn(
    plain_F: Tensor, theta: float, values: Mapping[str, object], factor: float, original: float
) -> Tensor:
    """Stretch pairs that turn less than beta_slow times; leave those beyond beta_fast alone."""
    width = 2 * len(plain_F)

    def pair_that_turns(times: float) -> float:
        return width * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = pair_that_turns(_number(values.get("beta_fast"), 32))
    last = pair_that_turns(_number(values.get("beta_slow"), 1))
    if values.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last += 0.001 if first == last else 0
    pairs_F = torch.arange(len(plain_F), dtype=torch.float32, device="cpu")
    stretched_F = ((pairs_F - first) / (last - first)).clamp(0, 1)
    return plain_F * (1 - stretched_F + stretched_F / factor)


def _yarn_magnitude(values: Mapping[str, object], factor: float) -> float:
    if (given := values.get("attention_factor")) is not None:
        return _number(given, 1.0)

    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    weight, all_dims = values.get("mscale"), values.get("mscale_all_dim")
    if weight and all_dims:
        return grown(_number(weight, 1)) / grown(_number(all_dims, 1))
    return grown(1.0)
