"""Compiles the static form with XLA for the CPU, and compares: Neuron's compiler takes XLA too.

torch-xla goes with one version of torch, so it needs an environment of its own (some GB, since
PyPI's torch for Linux brings CUDA along):

    python -m venv xla
    xla/bin/pip install torch==2.9.0 torch-xla==2.9.0 safetensors tokenizers jinja2 numpy
    PJRT_DEVICE=CPU xla/bin/python -m model_code.moe.static.xla FOLDER
"""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_code.common.architecture import parse
from model_code.common.checkpoint import load_decoder
from model_code.common.config_fields import load_json
from model_code.common.decoder import Decoder
from model_code.common.errors import UserError
from model_code.common.safetensors_folder import SafetensorsFolder
from model_code.moe.static.decoder import Bucket, StaticDecoder, buckets_for

_TOLERANCE = 1e-4  # of the largest logit, in float32


def main(arguments: Sequence[str] | None = None) -> int:
    """Export each bucket's graph, run it through XLA, compare; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model_code.moe.static.xla")
    parser.add_argument("folder", type=Path, help="a model's folder")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--context", type=int, default=64)
    given = parser.parse_args(arguments)
    try:
        architecture = parse(load_json(given.folder / "config.json"))
        decoder = load_decoder(
            architecture, SafetensorsFolder(given.folder, architecture),
            context=given.context, dtype=torch.float32,
        )  # fmt: skip
        differences = {
            bucket: compare(decoder, bucket) for bucket in buckets_for(given.slots, given.context)
        }
    except UserError as error:
        print(f"xla: {error}", file=sys.stderr)
        return 1
    for bucket, (worst, seconds) in differences.items():
        print(
            f"{bucket.name}: exported with torch {torch.__version__}, compiled by XLA for the CPU "
            f"in {seconds:.1f} s, within {worst:.1e} of the largest logit"
        )
    return int(any(worst > _TOLERANCE for worst, _ in differences.values()))


@torch.inference_mode()
def compare(decoder: Decoder, bucket: Bucket) -> tuple[float, float]:
    """Return how far XLA's logits and caches are from torch's, and how long compiling took."""
    static = StaticDecoder(decoder, bucket).eval()
    tokens_BS, starts_B, counts_B, *stores = static.example()
    tokens_BS = torch.randint(decoder.architecture.vocabulary, tokens_BS.shape)
    inputs = (tokens_BS, starts_B, counts_B, *stores)
    exported = torch.export.export(static, inputs, strict=False)
    stablehlo: Any = importlib.import_module("torch_xla.stablehlo")
    since = time.perf_counter()
    compiled = stablehlo.exported_program_to_stablehlo(exported)
    found: Sequence[Tensor] = compiled(*inputs)
    took = time.perf_counter() - since
    pairs = zip(found, static(*inputs), strict=True)
    return max(_difference(each.cpu(), own) for each, own in pairs), took


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-9))


if __name__ == "__main__":
    sys.exit(main())
