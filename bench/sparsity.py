"""What 4:16 sparsity takes and costs: bytes of the matrices, and loss on unseen text."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp
from pathlib import Path

from bench.row import Row
from model_code.moe.train.data import open_data
from model_code.moe.train.fine_tune import fine_tune, loss_of, recipe_of
from model_code.moe.train.sparsity import Report, Sparsity, prune_folder, verify

STEPS, RATE = 50, 1e-3
_SPARSITY = Sparsity(matrices="feed-forward", layout="zeros")
# bfloat16: 10 bytes where 32 were; float32, as this model is: 18 where 64 were.
_FEWER_BYTES = 64 / 18


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """Losses on unseen text, in nats a token, and what the pruned folder holds.

    Args:
        before: Of the model as it was trained.
        pruned: With the zeros, before any more training.
        tuned: After `STEPS` more steps with the zeros kept.
        control: Of the model as it was, after as many more steps.
    """

    before: float
    pruned: float
    tuned: float
    control: float
    report: Report


def measure(folder: Path, data: Path) -> Sparse:
    """Prune the model in a folder, and train it and its dense self on; needs room beside it."""
    zeros, tuned, control = (folder.parent / name for name in ("zeros", "tuned", "control"))
    for made in (zeros, tuned, control):
        made.mkdir()
    shards, recipe = open_data(str(data)), recipe_of(folder, rate=RATE)
    prune_folder(folder, zeros, _SPARSITY)
    pruned = recipe_of(zeros, rate=RATE)
    fine_tune(zeros, shards, pruned, tuned, sparsity=_SPARSITY, steps=STEPS, seed=0)
    fine_tune(folder, shards, recipe, control, sparsity=None, steps=STEPS, seed=0)
    before, after, tuned_loss, control_loss = (
        loss_of(each, shards, recipe_of(each, rate=RATE))
        for each in (folder, zeros, tuned, control)
    )
    return Sparse(
        before=before, pruned=after, tuned=tuned_loss, control=control_loss, report=verify(tuned)
    )


def rows(found: Sparse) -> Iterator[Row]:
    """Bytes beside dense, and the loss beside the dense model after as many steps."""
    report = found.report
    dense = report.share * report.dense_bytes
    packed = report.packed_bytes - (report.dense_bytes - dense)
    yield Row(
        name=f"4:16 matrices of tiny, packed, float32 ({report.share:.0%} of its numbers)",
        ours=f"{packed / 2**20:.2f} MiB", peer=f"with zeros: {dense / 2**20:.2f} MiB",
        ratio=dense / packed, target=_FEWER_BYTES,
    )  # fmt: skip
    yield Row(
        name=f"4:16 tiny on unseen text, {STEPS} steps after pruning (was {found.before:.4f}, "
        f"pruned {found.pruned:.4f})",
        ours=f"loss {found.tuned:.4f}",
        peer=f"not pruned, as many steps: {found.control:.4f}",
        ratio=exp(found.control - found.tuned), target=1.0,
    )  # fmt: skip
