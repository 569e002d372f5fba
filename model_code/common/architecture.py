"""What a model is, read from its config.json. Standard library only, exact to the parameter.

The model code builds modules from this record, the planner sizes hardware from it.

Conventions, the same wherever a number is shown:
- Parameters are those of the decoder with its embeddings and head, a tied head counted once. Leaves
  out what is stored and not trained (`buffers`) and multi-token prediction (`mtp_parameters`).
- Active parameters are all but the routed experts that a token does not visit.
- One multiplication with its addition is 2 FLOPs. Norms, softmax and activations are left out.
- Of a prompt, only the last token goes through the head, as when serving.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from model_code.common.config_fields import Fields, ModelError, load_json, shown
from model_code.common.config_layers import read_layers
from model_code.common.families import ALIASES, FAMILIES, HARMLESS, TEXT_PARTS
from model_code.common.layers import Attention, FeedForward, Layer, Rope, Router

__all__ = [
    "BITS",
    "SLUGS",
    "SPARSE",
    "Architecture",
    "Attention",
    "FeedForward",
    "Layer",
    "ModelError",
    "Rope",
    "Router",
    "parse",
    "read",
]  # fmt: skip

SLUGS = ("moe", "mla", "gqa", "sliding_window", "normalization")
# Bits that a number takes. Quantised formats need scales on top: how many depends on the group.
BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4}
# Trainium's 4:16 sparsity keeps 4 bf16 values of each 16, and 4 bits each to say which.
SPARSE = "bf16_4_16"
SPARSE_BITS_PER_16 = 4 * 16 + 4 * 4
_WRAPPER = """
    architectures boi_token_id boi_token_index dtype eoi_token_id eoi_token_index
    eos_token_id image_token_id image_token_index initializer_range mm_tokens_per_image
    model_type text_config tie_word_embeddings torch_dtype transformers_version
    vision_config
"""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder-only language model.

    Args:
        name: What to call it: the folder's or the file's name.
        model_type: What its config.json says; `family` is the same without `_text`.
        context: Longest sequence that it was made for.
        embedding_scale: What embeddings are multiplied by on their way in.
        norm_offset: Added to the weights of norms; Gemma stores them less one.
        logit_softcap: Bound of the logits, by tanh; None leaves them as they are.
        mtp_layers: Layers that predict more than the next token; not among `layers`.
        dtype: What the weights are stored in, as the config says; None when it does not.
    """

    name: str
    family: str
    model_type: str
    hidden: int
    vocabulary: int
    context: int
    layers: tuple[Layer, ...]
    tied_embeddings: bool
    norm_eps: float
    embedding_scale: float = 1.0
    norm_offset: float = 0.0
    logit_softcap: float | None = None
    mtp_layers: int = 0
    dtype: str | None = None

    @cached_property
    def kinds(self) -> Counter[Layer]:
        """The layers that differ from each other, and how many there are of each."""
        return Counter(self.layers)

    @cached_property
    def window(self) -> int | None:
        """Tokens that the layer with the smallest window sees; None where every layer sees all."""
        windows = (layer.attention.window for layer in self.layers)
        return min((each for each in windows if each), default=None)

    @cached_property
    def parameters(self) -> int:
        """All parameters."""
        layers = sum(n * layer.parameters(self.hidden) for layer, n in self.kinds.items())
        return layers + self.embedding_parameters + self.head_parameters + self.hidden

    @cached_property
    def active_parameters(self) -> int:
        """Parameters that one token touches; embedding and head in full."""
        return self.parameters - sum(
            (part.experts - part.active) * part.expert_parameters(self.hidden)
            for part in (layer.feed_forward for layer in self.layers)
        )

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding."""
        return self.vocabulary * self.hidden

    @property
    def head_parameters(self) -> int:
        """Parameters of the head; 0 when it is the embedding."""
        return 0 if self.tied_embeddings else self.embedding_parameters

    @cached_property
    def expert_parameters(self) -> int:
        """Parameters of all routed experts of all layers."""
        parts = (layer.feed_forward for layer in self.layers)
        return sum(part.experts * part.expert_parameters(self.hidden) for part in parts)

    @cached_property
    def buffers(self) -> int:
        """Numbers stored with the weights but not trained: corrections of the routers."""
        parts = (layer.feed_forward for layer in self.layers)
        return sum(part.experts for part in parts if part.router and part.router.correction)

    @property
    def mtp_parameters(self) -> int:
        """Parameters of multi-token prediction: layers like the last, a projection, three norms."""
        one = self.layers[-1].parameters(self.hidden) + 2 * self.hidden**2 + 3 * self.hidden
        return self.mtp_layers * one

    def weight_bytes(self, dtype: str) -> int:
        """Return the bytes of all parameters in a dtype of `BITS`, or 4:16 sparse.

        Sparse means the matrices of the layers; embeddings, head, norms and biases stay bf16.
        """
        if dtype == SPARSE:
            pruned = sum(layer.matrix_parameters(self.hidden) for layer in self.layers)
            return 2 * (self.parameters - pruned) + -(-pruned * SPARSE_BITS_PER_16 // 128)
        return _bytes(self.parameters, dtype)

    def expert_bytes(self, dtype: str) -> int:
        """Return the bytes of the largest routed expert; 0 without experts."""
        parts = (layer.feed_forward for layer in self.layers)
        return _bytes(max(part.expert_parameters(self.hidden) for part in parts), dtype)

    def kv_bytes_per_token(self, dtype: str = "bf16") -> int:
        """Return the cache bytes of a token that every layer keeps."""
        return _bytes(sum(layer.attention.cached_values for layer in self.layers), dtype)

    def latent_bytes_per_token(self, dtype: str = "bf16") -> int:
        """Return what a store of latents keeps of a token; fp8 is that of mla/store/fp8.py."""
        if dtype != "fp8":
            return self.kv_bytes_per_token(dtype)
        return sum(layer.attention.fp8_latent_bytes for layer in self.layers)

    def kv_bytes(self, tokens: int, dtype: str = "bf16") -> int:
        """Return the cache bytes of one sequence: windows keep no more than their length."""
        values = 0
        for layer, count in self.kinds.items():
            window = layer.attention.window
            kept = tokens if window is None else min(tokens, window)
            values += count * kept * layer.attention.cached_values
        return _bytes(values, dtype)

    def prefill_flops(self, tokens: int, *, cached: int = 0) -> int:
        """Return the operations of a prompt of `tokens`, after `cached` tokens in the cache."""
        scores = sum(
            count
            * layer.attention.pairs(cached, cached + tokens)
            * layer.attention.flops_per_pair(absorbed=False)
            for layer, count in self.kinds.items()
        )
        return 2 * tokens * self._matrices + 2 * self.embedding_parameters + scores

    def decode_flops(self, context: int) -> int:
        """Return the operations of one more token after `context` tokens, on the latents in MLA."""
        scores = sum(
            count
            * layer.attention.pairs(context, context + 1)
            * layer.attention.flops_per_pair(absorbed=True)
            for layer, count in self.kinds.items()
        )
        return 2 * (self._matrices + self.embedding_parameters) + scores

    def training_flops(self, tokens: int) -> int:
        """Return the operations of a forward and a backward pass over one sequence."""
        head = 2 * (tokens - 1) * self.embedding_parameters
        return 3 * (self.prefill_flops(tokens) + head)

    @cached_property
    def _matrices(self) -> int:
        return sum(layer.matrix_parameters(self.hidden, active=True) for layer in self.layers)

    @cached_property
    def innovations(self) -> dict[str, tuple[int, ...]]:
        """The slugs of what the model has, each with the numbers of its layers."""
        found: dict[str, list[int]] = {}
        for index, layer in enumerate(self.layers):
            for slug in layer.innovations:
                found.setdefault(slug, []).append(index)
        return {slug: tuple(found[slug]) for slug in SLUGS if slug in found}


def _bytes(values: int, dtype: str) -> int:
    if dtype not in BITS:
        raise ValueError(f"dtype is {dtype!r}; allowed is {', '.join(BITS)}")
    return -(-values * BITS[dtype] // 8)


def read(source: str | Path) -> Architecture:
    """Return the model in a folder with a config.json, or in such a file."""
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path}: the folder has no config.json")
        path = path / "config.json"
    name = path.parent.resolve().name if path.name == "config.json" else path.stem
    return parse(load_json(path), source=str(path), name=name)


def parse(
    config: Mapping[str, Any], *, source: str = "config.json", name: str = ""
) -> Architecture:
    """Return the model that a config.json describes; refuses what it does not know.

    Args:
        config: The object in that file.
        source: What messages begin with.
        name: What to call the model; the family when left out.
    """
    outer = Fields(config, source=source)
    model_type = outer.take("model_type")
    if isinstance(model_type, str) and model_type in TEXT_PARTS and "text_config" in config:
        inner = outer.object("text_config") or {}
        outer.refuse_others(frozenset(_WRAPPER.split()))
        values = {"model_type": TEXT_PARTS[model_type], **inner}
        if inner.get("tie_word_embeddings") is None and outer.has("tie_word_embeddings"):
            values["tie_word_embeddings"] = config["tie_word_embeddings"]
        return parse(values, source=f"{source}: text_config", name=name)
    family = ALIASES.get(model_type, model_type) if isinstance(model_type, str) else ""
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        given = "missing" if model_type is None else shown(model_type)
        raise ModelError(f"{source}: model_type is {given}; known families are {known}")
    rules = FAMILIES[family]
    fields = Fields(config, source=source, defaults=rules.defaults)
    hidden = fields.whole("hidden_size")
    if fields.flag("use_bidirectional_attention"):
        raise fields.error(
            "use_bidirectional_attention is true; allowed is false: this is no decoder"
        )
    architecture = Architecture(
        name=name or family,
        family=family,
        model_type=str(model_type),
        hidden=hidden,
        vocabulary=fields.whole("vocab_size", high=2**24),
        context=_context(fields),
        layers=read_layers(rules, fields),
        tied_embeddings=fields.flag("tie_word_embeddings"),
        norm_eps=fields.number("rms_norm_eps", high=1.0) or 1e-6,
        embedding_scale=hidden**0.5 if rules.unit_offset else 1.0,
        norm_offset=1.0 if rules.unit_offset else 0.0,
        logit_softcap=fields.number("final_logit_softcapping") if rules.unit_offset else None,
        mtp_layers=_mtp_layers(rules.experts, fields),
        dtype=_dtype(fields),
    )
    fields.refuse_others(HARMLESS)
    return architecture


def _mtp_layers(experts: str, fields: Fields) -> int:
    if experts != "deepseek":
        return 0
    return fields.optional_whole("num_nextn_predict_layers", low=0, high=64) or 0


def _context(fields: Fields) -> int:
    original = fields.optional_whole("original_max_position_embeddings", high=2**30)
    given = fields.optional_whole("max_position_embeddings", high=2**30) or original
    if given is None:
        raise fields.error("max_position_embeddings is missing; it is the longest sequence")
    return given


def _dtype(fields: Fields) -> str | None:
    given = fields.take("dtype") or fields.take("torch_dtype")
    return given if isinstance(given, str) else None
