"""Makes a model's graphs: `isomorph compile moe`, or `python -m model_code.moe.static.compile`.

On a machine with a Neuron device they are compiled and stored. Anywhere else nothing is stored:
each graph goes through torch.export and is compared with the eager decoder, and that is said.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from model_code.common.cache import KVCache
from model_code.common.decoder import Decoder
from model_code.common.engine.native import choose_dtype
from model_code.common.errors import SettingsError, UserError
from model_code.common.manifest import file_sha256
from model_code.common.model_folder import load_folder
from model_code.common.span import Span
from model_code.moe.static import neuron
from model_code.moe.static.decoder import Bucket, StaticDecoder, buckets_for

PLAN, FOLDER = "plan.json", "neuron"
_VERSION = 1
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the largest logit


@dataclass(frozen=True)
class Compiled:
    """What was made, or only checked.

    Args:
        folder: Where the graphs are; None where there is no Neuron device.
        worst: The largest difference to the eager decoder, of the largest logit.
    """

    folder: Path | None
    buckets: tuple[Bucket, ...]
    worst: float

    @property
    def says(self) -> str:
        """One line: what was done, and what was not."""
        graphs = f"{len(self.buckets)} graphs ({', '.join(each.name for each in self.buckets)})"
        checked = f"{graphs} exported and within {self.worst:.1e} of the eager decoder"
        if self.folder is None:
            return (
                f"no Neuron device here ({neuron.DEVICE}): {checked} on the CPU; nothing was "
                f"compiled for Inferentia, and nothing ran on it"
            )
        return f"{self.folder}: {checked} on the CPU, and compiled for Neuron"


def compile_model(
    folder: Path, out: Path | None = None, *, slots: int = 8, context: int = 2048,
    dtype: str = "auto", report: Callable[[str], None] = lambda _: None,
) -> Compiled:  # fmt: skip
    """Export, compare and, on a Neuron machine, compile the graphs of the model in `folder`.

    Raises:
        SettingsError: The model is too large for a core, or has no static form.
        WeightsError: The weights are missing or damaged.
    """
    present = neuron.present()
    chosen = torch.bfloat16 if present and dtype == "auto" else choose_dtype(dtype)
    decoder = load_folder(folder, context=context, dtype=chosen).decoder
    check_fits(decoder, slots, context)
    buckets = buckets_for(slots, context)
    worst = 0.0
    for bucket in buckets:
        worst = max(worst, _check(decoder, bucket))
        report(f"{bucket.name}: exported, equal to the eager decoder")
    if worst > _TOLERANCE[chosen]:
        raise SettingsError(
            f"{folder}: the exported graphs differ by {worst:.1e} of the largest logit; allowed is "
            f"{_TOLERANCE[chosen]:g}"
        )
    if not present:
        return Compiled(None, buckets, worst)
    return Compiled(_store(folder, out or folder / FOLDER, decoder, buckets), buckets, worst)


def check_fits(decoder: Decoder, slots: int, context: int) -> None:
    """Refuse what is larger than a core's memory: these graphs are not divided among cores."""
    weights = sum(p.numel() * p.element_size() for p in decoder.parameters())
    kind = "fp32" if decoder.dtype == torch.float32 else "bf16"
    cache = decoder.architecture.kv_bytes_per_token(kind) * slots * context
    if weights + cache > neuron.CORE_BYTES:
        raise SettingsError(
            f"{decoder.architecture.name} takes {(weights + cache) / 2**30:.1f} GiB with its "
            f"cache; a NeuronCore has {neuron.CORE_BYTES >> 30}, and graphs are not divided among "
            f"cores here: take fewer slots, a shorter context, or a smaller model"
        )


@torch.inference_mode()
def _check(decoder: Decoder, bucket: Bucket) -> float:
    """Return how far an exported graph's logits are from the eager decoder's."""
    static = StaticDecoder(decoder, bucket).eval()
    exported = torch.export.export(static, static.example(), strict=False).module()
    generator = torch.Generator().manual_seed(0)
    shape = (bucket.slots, bucket.tokens)
    tokens_BS = torch.randint(decoder.architecture.vocabulary, shape, generator=generator)
    starts_B = torch.zeros(bucket.slots, dtype=torch.int64)
    counts_B = starts_B + max(1, bucket.tokens - 3)  # some padding, where there is room
    found_BV, *_ = exported(tokens_BS, starts_B, counts_B, *static.empty_stores())
    cache = KVCache(
        decoder.architecture, slots=bucket.slots, context=bucket.context, dtype=decoder.dtype
    )
    states_BSD = decoder(tokens_BS, cache, Span(0, starts_B, bucket.tokens, counts_B))
    eager_BV = decoder.logits(states_BSD[:, int(counts_B[0]) - 1])
    return float((found_BV - eager_BV).abs().max() / eager_BV.abs().max())


def _store(folder: Path, out: Path, decoder: Decoder, buckets: Sequence[Bucket]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    graphs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        for bucket in buckets:
            static = StaticDecoder(decoder, bucket).eval()
            path = out / f"{bucket.name}.pt"
            neuron.compile_graph(static, static.example(), path, Path(work) / bucket.name)
            graphs.append(asdict(bucket) | {"file": path.name, "sha256": file_sha256(path)})
    plan = {
        "version": _VERSION, "dtype": str(decoder.dtype).removeprefix("torch."),
        "config_sha256": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
        "graphs": graphs,
    }  # fmt: skip
    (out / PLAN).write_text(json.dumps(plan, indent=2) + "\n")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the graphs; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model_code.moe.static.compile")
    parser.add_argument("folder", type=Path, help="a model's folder")
    parser.add_argument("--out", type=Path, help=f"FOLDER/{FOLDER} if left out")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args(arguments)
    try:
        made = compile_model(
            given.folder, given.out, slots=given.slots, context=given.context, dtype=given.dtype
        )
    except UserError as error:
        print(f"compile: {error}", file=sys.stderr)
        return 1
    print(made.says)
    return 0


if __name__ == "__main__":
    sys.exit(main())
