"""A small mixture of experts of DeepSeek-V3's kind, and dense models to hold beside it."""

from collections.abc import Mapping
from typing import Any

from model_code.common.architecture import parse

# 256 experts of which a token visits 8, and a shared one, as DeepSeek-V3 has it; two layers.
MIXTURE: dict[str, Any] = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 512,
    "intermediate_size": 1152, "moe_intermediate_size": 128, "vocab_size": 1024,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8,
    "q_lora_rank": 128, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 32, "first_k_dense_replace": 0, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "n_shared_experts": 1, "n_group": 8, "topk_group": 4,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "hidden_act": "silu", "max_position_embeddings": 2048,
    "rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "attention_bias": False,
}  # fmt: skip
# Wider, and one layer: a token's experts are 28 MB in float32, which no cache holds.
WIDE = MIXTURE | {"hidden_size": 1024, "moe_intermediate_size": 256, "num_hidden_layers": 1}
# Small enough to be trained beside a dense model of its size, on as many tokens as make the
# update of all parameters the smaller part of a step, which it is in any real training.
SMALL = MIXTURE | {"hidden_size": 384, "moe_intermediate_size": 96, "num_hidden_layers": 1}


def dense_like(config: Mapping[str, Any], *, active: bool) -> dict[str, Any]:
    """Return the config of a dense model with as many parameters as `config` has, or has active.

    Attention, layers and vocabulary are the same; the inner width of the feed-forward part makes up
    for the experts, to within a column of each layer's matrices.
    """
    wanted = parse(config)
    layers = len(wanted.layers)
    dense = dict(config) | {"first_k_dense_replace": layers, "intermediate_size": 1}
    goal = wanted.active_parameters if active else wanted.parameters
    left = goal - parse(dense).parameters
    return dense | {"intermediate_size": 1 + round(left / (3 * wanted.hidden * layers))}
