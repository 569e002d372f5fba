"""What a GGUF file's metadata says about the model, in the words of a Hugging Face config.json."""

from pathlib import Path
from typing import Any

from model_code.common.architecture import Architecture, parse
from model_code.common.errors import SettingsError, WeightsError
from model_code.common.gguf_header import GGUFHeader

# GGUF's word -> config.json's word.
_COMMON = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "attention.key_length": "head_dim",
}
_FAMILIES = {
    "llama": _COMMON,
    "gemma3": {**_COMMON, "attention.sliding_window": "sliding_window"},
}
# What vLLM goes by: without it, it takes a model for one that makes embeddings.
_CLASSES = {"llama": "LlamaForCausalLM", "gemma3": "Gemma3ForCausalLM"}
_OPTIONAL = {"num_key_value_heads", "rope_theta", "head_dim"}
_GEMMA3_27B_LAYERS = 62  # the one Gemma 3 whose scores are not scaled by the width of a head


def find_gguf(folder: Path) -> Path:
    """Return the one .gguf file in `folder`."""
    found = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise WeightsError(f"{folder}: must hold exactly one .gguf file, found {names}")
    return found[0]


def config_of(header: GGUFHeader) -> dict[str, Any]:
    """Return the config.json that the file's metadata amounts to."""
    family = header.metadata.get("general.architecture")
    words = _FAMILIES.get(family) if isinstance(family, str) else None
    if words is None:
        known = ", ".join(_FAMILIES)
        raise WeightsError(f"{header.path}: architecture {family!r} is unknown; known: {known}")
    config: dict[str, Any] = {"model_type": family, "architectures": [_CLASSES[str(family)]]}
    for word, name in words.items():
        if (value := header.metadata.get(f"{family}.{word}")) is not None:
            config[name] = value
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise WeightsError(f"{header.path}: damaged: token_embd.weight is missing")
    config.setdefault("vocab_size", embedding.shape[0])
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    missing = sorted(set(words.values()) - set(config) - _OPTIONAL)
    if missing:
        raise WeightsError(f"{header.path}: damaged: metadata lacks {', '.join(missing)}")
    if (scaling := _scaling(header, str(family))) is not None:
        config["rope_scaling"] = scaling
    if family == "gemma3":
        config |= _gemma3(config)
    return config


def _scaling(header: GGUFHeader, family: str) -> dict[str, Any] | None:
    """Return how the file stretches positions."""
    kind = header.metadata.get(f"{family}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise WeightsError(
            f"{header.path}: RoPE is scaled by {kind!r}; the native engine reads 'linear' from "
            f"GGUF files; set ISOMORPH_ENGINE=llama.cpp"
        )
    return {"rope_type": kind, "factor": header.metadata.get(f"{family}.rope.scaling.factor")}


def _gemma3(config: dict[str, Any]) -> dict[str, Any]:
    """Return what the file leaves to llama.cpp: the scale of scores, and which layers are full."""
    width = config.get("head_dim", 256)
    if config["num_hidden_layers"] == _GEMMA3_27B_LAYERS:
        width = config["hidden_size"] // config["num_attention_heads"]
    return {
        "model_type": "gemma3_text", "query_pre_attn_scalar": width, "sliding_window_pattern": 6,
    }  # fmt: skip


def architecture_of(header: GGUFHeader) -> Architecture:
    """Return the model's dimensions, or say in one line why they cannot be read."""
    try:
        return parse(config_of(header), source=str(header.path), name=header.path.stem)
    except ValueError as error:
        raise WeightsError(str(error)) from error


def check_context(context: int, architecture: Architecture) -> None:
    """Refuse a context beyond the positions that the model was made for."""
    if context > architecture.context:
        raise SettingsError(
            f"ISOMORPH_CONTEXT is {context}; the model was made for at most "
            f"{architecture.context} tokens"
        )
