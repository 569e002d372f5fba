"""A tiny model of every family with random weights, as transformers has it and as we do."""

# mypy: disable-error-code="no-untyped-call"

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from model_code.common.architecture import Architecture, parse
from model_code.common.cache import KVCache
from model_code.common.checkpoint import load_decoder
from model_code.common.decoder import Decoder
from model_code.common.span import Span

logging.set_verbosity_error()
logging.disable_progress_bar()
VOCABULARY = 101
CONTEXT = 128
_COMMON: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 80, "vocab_size": VOCABULARY, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
_EXPERTS = {"moe_intermediate_size": 24, "num_experts_per_tok": 3}
_DEEPSEEK = {
    **_EXPERTS, "num_key_value_heads": 6, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 12, "kv_lora_rank": 16, "q_lora_rank": 20, "n_routed_experts": 8,
    "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_GEMMA = {"head_dim": 12, "sliding_window": 8, "query_pre_attn_scalar": 10}
_LONG = {
    "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.5], "long_factor": [1.0, 2.0, 3.0, 5.0],
}  # fmt: skip
# name -> model_type and what differs from the common fields.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3.1": ("llama", {"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}}),
    "llama stretched evenly": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "mistral": ("mistral", {"sliding_window": 8}),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", {}),
    "qwen2 with late windows": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1,
                                          "sliding_window": 8}),
    "qwen3": ("qwen3", {"head_dim": 12, "rope_scaling": _YARN}),
    "qwen3_moe": ("qwen3_moe", {**_EXPERTS, "head_dim": 12, "num_experts": 6,
                                "norm_topk_prob": True, "mlp_only_layers": [1]}),
    "deepseek_v2": ("deepseek_v2", {**_DEEPSEEK, "topk_method": "group_limited_greedy",
                                    "routed_scaling_factor": 1.7}),
    "deepseek_v2 lite": ("deepseek_v2", {**_DEEPSEEK, "q_lora_rank": None,
                                         "topk_method": "greedy"}),
    "deepseek_v3": ("deepseek_v3", {**_DEEPSEEK, "attention_bias": True, "rope_scaling": {
        **_YARN, "mscale": 1.0, "mscale_all_dim": 0.8, "beta_fast": 16, "beta_slow": 2}}),
    "deepseek_v3 in halves": ("deepseek_v3", {**_DEEPSEEK, "rope_interleave": False}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": ("gemma3_text", {**_GEMMA, "sliding_window_pattern": 3}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 8, "num_hidden_layers": 4}),
    "phi3": ("phi3", {"sliding_window": 9}),
    "phi3 long": ("phi3", {"rope_scaling": _LONG, "original_max_position_embeddings": 64}),
    "gpt_oss": ("gpt_oss", {"head_dim": 12, "sliding_window": 8, "num_local_experts": 4,
                            "num_experts_per_tok": 2, "num_hidden_layers": 2,
                            "rope_scaling": {**_YARN, "truncate": False}}),
    "glm4_moe": ("glm4_moe", {**_EXPERTS, "head_dim": 12, "use_qk_norm": True, "n_group": 1,
                              "n_routed_experts": 8, "n_shared_experts": 1, "topk_group": 1,
                              "first_k_dense_replace": 1, "partial_rotary_factor": 0.5}),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One model twice. `state` and `config` are what transformers writes to disk."""

    theirs: Any
    ours: Decoder
    state: dict[str, torch.Tensor]
    config: dict[str, Any]

    @property
    def architecture(self) -> Architecture:
        return self.ours.architecture


@cache
def pair(name: str) -> Pair:
    """Return a family's tiny model with random weights."""
    theirs = transformers_model(name)
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        state = load_file(Path(folder, "model.safetensors"))
        config = json.loads(Path(folder, "config.json").read_text())
    ours = load_decoder(
        parse(config, name=name), state.__getitem__, context=CONTEXT, dtype=torch.float32
    )
    return Pair(theirs=theirs, ours=ours, state=state, config=config)


def transformers_model(name: str) -> Any:
    kind, fields = FAMILIES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**_COMMON, **fields})
    # The plain implementation computes soft caps and sinks in every family.
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():  # what begins as ones and zeros would hide a mistake
        for place, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if any(word in place for word in ("norm", "bias", "sinks")):
                tensor.uniform_(0.5, 1.5)
            elif any(word in place for word in ("experts", "gate", "router")):
                tensor.normal_(0, 0.3)
    return model


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, shape, generator=generator)


def new_cache(decoder: Decoder, *, slots: int = 3, **fields: Any) -> KVCache:
    """Return a cache full of garbage, none of which may ever be seen."""
    cache = KVCache(
        decoder.architecture, slots=slots, context=CONTEXT, dtype=decoder.dtype, **fields
    )
    for layer in cache.layers:
        for store in layer.stores:
            store.fill_(7.0)
    return cache


@torch.inference_mode()
def logits(
    decoder: Decoder, tokens: torch.Tensor, splits: list[int], cache: KVCache | None = None
) -> torch.Tensor:
    """Return the logits of all tokens, read in chunks that begin at `splits`, in slot 1."""
    cache = cache or new_cache(decoder)
    found = []
    for start, end in zip([0, *splits], [*splits, len(tokens)], strict=True):
        if start < end:
            span = Span(1, torch.tensor([start]), end - start)
            found.append(decoder.logits(decoder(tokens[None, start:end], cache, span)[0]))
    return torch.cat(found)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())
