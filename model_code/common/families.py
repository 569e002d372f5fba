"""What each family of models means by its config.json, as transformers' config classes say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from model_code.common.layers import NormPlacement, QkNorm

# Fields that change neither sizes nor the computation of one token.
_HARMLESS = """
    architectures attention_dropout auto_map bos_token_id cache_implementation
    chunk_size_feed_forward dtype embd_pdrop eos_token_id ep_size head_dim hidden_dropout
    id2label initializer_range unsloth_fixed unsloth_version
    initial_context_length is_decoder is_encoder_decoder label2id max_window_layers model_type
    output_attentions output_hidden_states output_router_logits pad_token_id pretraining_tp
    quantization_config resid_pdrop return_dict router_aux_loss_coef router_jitter_noise
    torch_dtype transformers_version unk_token_id use_cache
    aux_loss_alpha seq_aux attn_implementation qk_head_dim experts_per_token rope_interleave
    problem_type task_specific_params is_llama_config rope_interleaved isomorph_sparsity
"""
HARMLESS = frozenset(_HARMLESS.split())
Bias = Literal["none", "qkv", "all"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family reads its fields.

    Args:
        bias: Which attention projections `attention_bias` gives a bias to.
        windows: Which layers `sliding_window` bounds: every one, those that `layer_types`
            names, those from `max_window_layers` on, or none.
        pattern: One layer in so many is full, where `layer_types` is absent.
        gated_windows: Whether the window counts only with `use_sliding_window`.
        experts: The fields that count experts: Mixtral's, Qwen's or DeepSeek's.
        local_theta: Whether sliding layers have a rotary base of their own.
        unit_offset: Whether norms multiply by 1 + weight, and embeddings by sqrt(hidden).
        fixed_bias: Whether `attention_bias` cannot be switched off.
        optional_qk_norm: Whether `use_qk_norm` switches norms of queries and keys on.
        defaults: What absent fields mean.
    """

    bias: Bias = "none"
    norms: NormPlacement = "pre"
    qk_norm: QkNorm = "none"
    windows: Literal["none", "all", "typed", "late"] = "none"
    pattern: int = 0
    gated_windows: bool = False
    mla: bool = False
    experts: Literal["none", "local", "qwen", "deepseek"] = "none"
    mlp_bias: bool = False
    local_theta: bool = False
    unit_offset: bool = False
    sinks: bool = False
    router_buffer: bool = False
    fixed_bias: bool = False
    optional_qk_norm: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


_DEEPSEEK = {"moe_layer_freq": 1, "rope_interleave": True}
_SIGMOID = {"scoring_func": "sigmoid", "norm_topk_prob": True}
_GEMMA = {"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"}
_V3 = Family(
    bias="all", mla=True, experts="deepseek", router_buffer=True,
    defaults=_DEEPSEEK | _SIGMOID | {"n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5},
)  # fmt: skip
FAMILIES: Mapping[str, Family] = {
    "llama": Family(bias="all", mlp_bias=True),
    "mistral": Family(windows="all", defaults={"sliding_window": 4096}),
    "mixtral": Family(windows="all", experts="local",
                      defaults={"rope_theta": 1e6, "rms_norm_eps": 1e-5, "norm_topk_prob": True}),
    "qwen2": Family(bias="qkv", fixed_bias=True, windows="late", gated_windows=True,
                    defaults={"attention_bias": True, "sliding_window": 4096,
                              "max_window_layers": 28}),
    "qwen3": Family(bias="all", qk_norm="head", windows="late", gated_windows=True,
                    defaults={"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28}),
    "qwen3_moe": Family(bias="all", qk_norm="head", windows="all", gated_windows=True,
                        experts="qwen", defaults={"sliding_window": 4096,
                                                  "decoder_sparse_step": 1}),
    "deepseek_v2": Family(bias="all", mla=True, mlp_bias=True, experts="deepseek",
                          defaults=_DEEPSEEK | {"first_k_dense_replace": 0,
                                                "topk_method": "greedy"}),
    "deepseek_v3": _V3,
    "kimi_k2": _V3,
    "gemma2": Family(bias="all", norms="sandwich", windows="typed", pattern=2, unit_offset=True,
                     defaults=_GEMMA | {"head_dim": 256, "sliding_window": 4096,
                                        "query_pre_attn_scalar": 256,
                                        "attn_logit_softcapping": 50.0,
                                        "final_logit_softcapping": 30.0}),
    "gemma3": Family(bias="all", norms="sandwich", qk_norm="head", windows="typed", pattern=6,
                     local_theta=True, unit_offset=True,
                     defaults=_GEMMA | {"head_dim": 256, "sliding_window": 4096,
                                        "vocab_size": 262_208, "num_attention_heads": 8,
                                        "num_key_value_heads": 4, "rope_theta": 1e6,
                                        "max_position_embeddings": 131_072,
                                        "query_pre_attn_scalar": 256,
                                        "rope_local_base_freq": 10_000.0}),
    "olmo2": Family(bias="all", norms="reordered", qk_norm="all_heads",
                    defaults={"rms_norm_eps": 1e-5}),
    "olmo3": Family(bias="all", norms="reordered", qk_norm="all_heads", windows="typed", pattern=4,
                    defaults={"sliding_window": 4096, "rope_theta": 5e5, "rms_norm_eps": 1e-5}),
    "phi3": Family(windows="all", defaults={"rms_norm_eps": 1e-5}),
    "gpt_oss": Family(bias="all", windows="typed", pattern=2, experts="local", sinks=True,
                      defaults={"head_dim": 64, "attention_bias": True, "sliding_window": 128,
                                "rope_theta": 150_000.0, "rms_norm_eps": 1e-5,
                                "swiglu_alpha": 1.702, "swiglu_limit": 7.0,
                                "norm_topk_prob": True}),
    "glm4_moe": Family(bias="qkv", optional_qk_norm=True, experts="deepseek", router_buffer=True,
                       defaults=_DEEPSEEK | _SIGMOID | {"partial_rotary_factor": 0.5,
                                                        "rms_norm_eps": 1e-5}),
}  # fmt: skip
# The text part of a multimodal config has a model_type of its own.
TEXT_PARTS = {"gemma3": "gemma3_text"}
ALIASES = {"gemma3_text": "gemma3", "gemma3": "gemma3"}
