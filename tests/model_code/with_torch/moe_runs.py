"""A model that trains in moments, and tokens for it."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from model_code.moe.train.recipe import Recipe, Training
from model_code.moe.train.token_file import write

VOCABULARY = 64
TOKENIZER = b'{"a": "tokenizer"}'
MODEL: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "attention_bias": False, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 32,
    "intermediate_size": 48, "kv_lora_rank": 16, "max_position_embeddings": 64,
    "moe_intermediate_size": 16, "n_group": 4, "n_routed_experts": 8, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_attention_heads": 2, "num_experts_per_tok": 2,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "num_nextn_predict_layers": 0,
    "q_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "rms_norm_eps": 1e-6,
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "tie_word_embeddings": False, "topk_group": 2, "torch_dtype": "float32", "v_head_dim": 16,
    "vocab_size": VOCABULARY,
}  # fmt: skip

TRAINING: dict[str, Any] = {
    "context": 16, "batch": 8, "micro_batch": 2, "rate": 0.01, "warm_up": 2, "gamma": 0.01,
    "balance": 0.01,
}  # fmt: skip


def recipe(*, model: dict[str, Any] | None = None, **training: Any) -> Recipe:
    """Return the model and how it trains; arguments change single fields."""
    return Recipe(name="small", source="small.json", model=MODEL | (model or {}),
                  training=Training(**TRAINING | training))  # fmt: skip


def tokens(count: int, seed: int = 0) -> "np.ndarray[Any, np.dtype[np.uint32]]":
    """Return tokens that can be learnt: each is one or two after the one before it."""
    steps = np.random.default_rng(seed).integers(1, 3, count)
    return (np.cumsum(steps) % VOCABULARY).astype(np.uint32)


def make_data(folder: Path, *, shards: int = 2, count: int = 400, held_out: int = 200) -> Path:
    """Write shards, a held-out one and the tokenizer; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {"tokenizer": hashlib.sha256(TOKENIZER).hexdigest(), "vocabulary": VOCABULARY}
    for number in range(shards):
        write(folder / f"train-{number:05}.tokens", tokens(count, number), **words)  # type: ignore[arg-type]
    if held_out:
        write(folder / "held-out.tokens", tokens(held_out, 99), **words)  # type: ignore[arg-type]
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    return folder
