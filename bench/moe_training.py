"""A mixture of experts beside a dense model of as many active parameters, at equal steps.

The first mixture is then pruned to 4:16, and trained on.

`isomorph bench moe_training --write docs/moe-loss.svg` draws the curves.
"""

import atexit
import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import exp
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from bench import sparsity
from bench.chart import line_chart
from bench.moe_models import dense_like
from bench.row import Row
from model_code.common.safetensors_folder import save_folder
from model_code.common.text import source_of_python, text_of_python
from model_code.moe.train import shards
from model_code.moe.train.recipe import Recipe, load_recipe
from model_code.moe.train.run import Trained, train

# Of fewer tokens 16 experts do not become different enough: after 400 steps both are level.
STEPS, SEEDS = 1600, (0, 1, 2)
_SEQUENCES = 8  # of a step: half of the config's, for six trainings in one measurement
_HELD_OUT = 65_536  # tokens that are not learnt: of fewer, seeds differ by more than models do
_PIECES = 200
_LAST = 50  # batches


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: the loss of each step, and that on text that it had not seen."""

    losses: tuple[float, ...]
    held_out: float

    @property
    def last(self) -> float:
        """The mean loss of the last batches, which were new to the model as well."""
        return fmean(self.losses[-_LAST:])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What was measured with one seed."""

    mixture: Run
    dense: Run


def rows() -> Iterator[Row]:
    """The loss on unseen text, seed by seed; the ratio is that of the perplexities."""
    whole, active, peer = (f"{count / 1e6:.2f}M" for count in _parameters())
    for seed in SEEDS:
        pair = measure(seed)
        ours, theirs = pair.mixture, pair.dense
        yield Row(
            name=f"loss a token of unseen text after {STEPS} steps, tiny, seed {seed}",
            ours=f"{ours.held_out:.4f} ({whole}, {active} active; last batches {ours.last:.3f})",
            peer=f"dense of {peer}: {theirs.held_out:.4f} (last batches {theirs.last:.3f})",
            ratio=exp(theirs.held_out - ours.held_out), target=1.0,
        )  # fmt: skip
    yield from sparsity.rows(sparsity.measure(_first_mixture(), _home() / "shards"))


def write(path: Path) -> None:
    """Draw the curves of all seeds to an SVG file."""
    pairs = [measure(seed) for seed in SEEDS]
    whole, active, peer = (f"{count / 1e6:.2f}M" for count in _parameters())
    lines: Mapping[str, list[tuple[float, ...]]] = {
        f"mixture, {active} of {whole} active": [pair.mixture.losses for pair in pairs],
        f"dense, {peer}": [pair.dense.losses for pair in pairs],
    }
    title = f"Loss of a batch at equal steps, seeds {', '.join(map(str, SEEDS))} and their mean"
    path.write_text(line_chart(title, lines, across="step", up="nats a token"))


@cache
def measure(seed: int) -> Pair:
    """Train both with a seed, on text that they see once at most."""
    mixture = _train(_mixture(), seed)
    if seed == SEEDS[0]:
        _first_mixture().mkdir()
        save_folder(mixture.decoder, dict(_mixture().model), _first_mixture())
    return Pair(mixture=_run(mixture), dense=_run(_train(_dense(), seed)))


@cache
def _home() -> Path:
    """Return a folder with shards of the text, which is there until this process ends."""
    scratch = TemporaryDirectory()
    atexit.register(scratch.cleanup)
    home = Path(scratch.name)
    text = home / "text"
    text.write_text(_text(), encoding="utf-8")
    options = [str(text), "--out", str(home / "shards"), "--held-out", str(_HELD_OUT)]
    with contextlib.redirect_stdout(io.StringIO()):
        if shards.main(options):
            raise RuntimeError("the shards could not be made")
    return home


def _first_mixture() -> Path:
    return _home() / "first-mixture"


def _text() -> str:
    """Return Python's language reference and its library's source, in pieces that take turns."""
    texts = text_of_python(), source_of_python()
    return "".join(
        text[len(text) * piece // _PIECES : len(text) * (piece + 1) // _PIECES]
        for piece in range(_PIECES) for text in texts
    )  # fmt: skip


def _train(recipe: Recipe, seed: int) -> Trained:
    return train(recipe, data=_home() / "shards", steps=STEPS, seed=seed)


def _run(trained: Trained) -> Run:
    assert trained.held_out is not None  # noqa: S101
    return Run(losses=tuple(trained.losses), held_out=trained.held_out)


def _mixture() -> Recipe:
    recipe = load_recipe("tiny")
    training = replace(recipe.training, batch=_SEQUENCES, micro_batch=_SEQUENCES)
    return replace(recipe, training=training)


def _dense() -> Recipe:
    recipe = _mixture()
    return replace(recipe, name="dense", model=dense_like(recipe.model, active=True))


def _parameters() -> tuple[int, int, int]:
    """Return all and the active parameters of the mixture, and those of the dense model."""
    mixture = _mixture().architecture
    return mixture.parameters, mixture.active_parameters, _dense().architecture.parameters
