"""Parameter counts and KV shapes held against transformers, at real size, on the meta device."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from model_code.common.architecture import parse, read

pytestmark = pytest.mark.torch

MODELS = Path(__file__).parents[3] / "config" / "models"
NAMES = sorted(path.stem for path in MODELS.glob("*.json"))
# One a family, from the defaults of transformers' config classes; DeepSeek-V2's leave out top-k.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "mixtral": {}, "qwen2": {}, "qwen3": {}, "qwen3_moe": {},
    "deepseek_v2": {"num_experts_per_tok": 6, "first_k_dense_replace": 1}, "deepseek_v3": {},
    "gemma2": {}, "gemma3_text": {}, "olmo2": {}, "olmo3": {}, "phi3": {}, "gpt_oss": {},
    "glm4_moe": {"head_dim": 128},
}  # fmt: skip
# What no published config says, but the classes know.
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "qwen3": {"attention_bias": True, "use_sliding_window": True, "max_window_layers": 3},
    "qwen3_moe": {"decoder_sparse_step": 2, "mlp_only_layers": [1, 3]},
    "deepseek_v2": {"num_experts_per_tok": 6, "first_k_dense_replace": 1, "q_lora_rank": None,
                    "attention_bias": True, "mlp_bias": True},
    "deepseek_v3": {"q_lora_rank": None, "attention_bias": True},
    "gemma3_text": {"attention_bias": True, "tie_word_embeddings": False},
    "olmo2": {"num_key_value_heads": 8, "attention_bias": True},
    "gpt_oss": {"attention_bias": False},
    "glm4_moe": {"head_dim": 128, "use_qk_norm": True, "attention_bias": True},
}  # fmt: skip


def built(config: Any) -> Any:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def test_each_family_counts_as_transformers_builds_it_from_its_defaults() -> None:
    for family, fields in DEFAULTS.items():
        config = transformers.AutoConfig.for_model(family, **fields)
        ours = parse(json.loads(json.dumps(config.to_dict())))
        assert ours.parameters == sum(p.numel() for p in built(config).parameters()), family


@pytest.mark.parametrize("family", VARIANTS)
def test_a_variant_counts_as_transformers_builds_it(family: str) -> None:
    config = transformers.AutoConfig.for_model(family, **VARIANTS[family])
    ours = parse(json.loads(json.dumps(config.to_dict())))
    assert ours.parameters == sum(p.numel() for p in built(config).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_each_shipped_model_counts_as_transformers_builds_it(name: str) -> None:
    values = json.loads((MODELS / f"{name}.json").read_text())
    values = values.get("text_config") or values
    # transformers has no class for Kimi-K2, whose architecture is DeepSeek-V3's.
    kind = values.pop("model_type").replace("kimi_k2", "deepseek_v3")
    model = built(transformers.AutoConfig.for_model(kind, **values))
    ours = read(MODELS / f"{name}.json")
    assert ours.parameters == sum(p.numel() for p in model.parameters())
    assert ours.buffers == sum(
        b.numel() for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")
    )
    theirs = [layer.self_attn for layer in model.model.layers]
    windows = [getattr(attention, "sliding_window", None) for attention in theirs]
    if any(hasattr(attention, "sliding_window") for attention in theirs):
        assert [layer.attention.window for layer in ours.layers] == windows


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m", "gpt-oss-20b", "mixtral-8x7b"])
def test_kv_bytes_are_those_that_transformers_caches(name: str) -> None:
    values = json.loads((MODELS / f"{name}.json").read_text())
    # Two layers of each kind, small, so that the cache is of real tensors.
    values["num_hidden_layers"] = 4
    values["vocab_size"] = 64
    values["intermediate_size"] = 32
    values["layer_types"] = values["layer_types"][:4] if "layer_types" in values else None
    values = {key: value for key, value in values.items() if value is not None}
    kind = values.pop("model_type")
    config = transformers.AutoConfig.for_model(kind, **values)
    config.pad_token_id = None
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    tokens = 40
    with torch.no_grad():
        cache = model(torch.zeros(1, tokens, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == parse({"model_type": kind, **values}).kv_bytes(tokens, "fp32")
