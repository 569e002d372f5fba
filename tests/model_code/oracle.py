"""SmolLM2 as transformers has it: an implementation that no one here wrote, on the same weights."""

from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

PROMPT = "The capital of France is"
# What transformers makes of it, greedily, until the model ends; tests/model_code/with_torch/
# test_decoder.py holds this against transformers, and the end-to-end tests what is deployed
# against this. The two likeliest tokens are never nearer than 0.05, and fp32 errs by 0.0001.
GREEDY = " Paris.\n\nThe answer is: 2018-01-22 12:12:53."


def transformers_model(path: Path) -> Any:
    """Return transformers' model with the weights of a GGUF file, in fp32.

    Its own reader fills it; `from_pretrained(gguf_file=...)` would want accelerate on top.
    """
    import gguf
    import numpy as np
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.initialization import no_init_weights
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    def mapped(path: str, mode: Any, map_file: Any = np.memmap) -> Any:
        return np.asarray(map_file(path, mode=mode))

    # It reads the file's header twice and makes the table of names for each module; once will do.
    # What it cuts a million times from a mapped file may as well be cut from a plain array.
    with (
        patch("gguf.GGUFReader", cache(gguf.GGUFReader)),
        patch("gguf.get_tensor_name_map", cache(gguf.get_tensor_name_map)),
        patch("numpy.memmap", mapped),
    ):
        config = load_gguf_checkpoint(str(path))["config"]
        with no_init_weights():  # all are read
            model: Any = LlamaForCausalLM(LlamaConfig(**config)).eval()
        read = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    tensors = read["tensors"]
    loaded = model.load_state_dict(tensors, strict=False)
    assert loaded.missing_keys == ["lm_head.weight"]  # tied
    model.tie_weights()
    return model
