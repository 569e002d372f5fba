"""A small mixture of experts with random weights, as a folder; and servers of it."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from model_code.common.architecture import parse
from model_code.common.decoder import Decoder
from model_code.common.text import text_of_python, train_tokenizer
from model_code.mla import train_tiny
from tests.model_code.conftest import ROOT, ServerProcess, free_port
from tests.model_code.with_torch.forked import Forked

TEXT = text_of_python()[:60_000]
CONFIG: dict[str, Any] = json.loads((ROOT / "config/models/tiny-moe.json").read_text()) | {
    "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "vocab_size": 320,
    "num_hidden_layers": 3, "n_routed_experts": 8, "num_experts_per_tok": 2, "kv_lora_rank": 16,
    "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 24, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip


def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXT, CONFIG["vocab_size"])


def random_decoder(config: dict[str, Any] = CONFIG, *, context: int = 128) -> Decoder:
    """Weights that are large enough for routers to have opinions."""
    torch.manual_seed(1)
    decoder = Decoder(parse(config), context=context, dtype=torch.float32)
    for parameter in decoder.requires_grad_(False).parameters():
        parameter.fill_(1) if parameter.dim() == 1 else parameter.normal_(0, 0.2)
    for name, buffer in decoder.named_buffers():
        assert name.endswith("correction")
        buffer.normal_(0, 0.05)
    return decoder.eval()


def write_folder(folder: Path, config: dict[str, Any] = CONFIG) -> Path:
    train_tiny.save(folder, random_decoder(config), tokenizer(), config, "a test's model\n")
    return folder


class Servers:
    """Starts `python -m model_code.moe.serve`; each keyword is a setting without ISOMORPH_."""

    def __init__(self, weights: Path, folder: Path) -> None:
        self._weights, self._folder = weights, folder
        self._started: list[Forked] = []

    def __call__(self, **settings: object) -> ServerProcess:
        port, log = free_port(), self._folder / f"{len(self._started)}.log"
        aws = {name: str(settings.pop(name)) for name in [*settings] if name.startswith("AWS_")}
        env = {
            "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "ISOMORPH_KERNELS": "off",
            "ISOMORPH_MODEL": "mixture", "ISOMORPH_ENGINE": "native",
            "ISOMORPH_WEIGHTS": str(self._weights), "ISOMORPH_STATE": str(self._folder / "state"),
            "ISOMORPH_PORT_OVERRIDE": str(port), "ISOMORPH_CONTEXT": "128",
            "ISOMORPH_DTYPE": "float32", "ISOMORPH_SLOTS": "4", **aws,
            **{f"ISOMORPH_{name}": str(value) for name, value in settings.items()},
        }  # fmt: skip
        process = Forked("model_code.moe.serve", env, log)
        self._started.append(process)
        return ServerProcess(process, f"http://127.0.0.1:{port}", log)

    def stop(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
