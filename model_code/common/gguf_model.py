"""What a GGUF file's metadata says about the model, in the words of a Hugging Face config.json."""

from pathlib import Path
from typing import Any

from model_code.common.architecture import Architecture, parse
from model_code.common.errors import SettingsError, WeightsError
from model_code.common.gguf_header import GGUFHeader

# GGUF's word -> config.json's word, for the Llama family.
_LLAMA = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
_GEMMA3 = _LLAMA | {"attention.sliding_window": "sliding_window"}
_FAMILIES = {"llama": _LLAMA, "gemma3": _GEMMA3}


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
    config: dict[str, Any] = {"model_type": family}
    for word, name in words.items():
        if (value := header.metadata.get(f"{family}.{word}")) is not None:
            config[name] = value
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise WeightsError(f"{header.path}: damaged: token_embd.weight is missing")
    config.setdefault("vocab_size", embedding.shape[0])
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    missing = sorted(set(words.values()) - set(config) - {"num_key_value_heads", "rope_theta"})
    if missing:
        raise WeightsError(f"{header.path}: damaged: metadata lacks {', '.join(missing)}")
    if (head := header.metadata.get(f"{family}.attention.key_length")) is not None:
        config["head_dim"] = head
    return config


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
