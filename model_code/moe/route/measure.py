"""Measures which experts each kind of text visits: `python -m model_code.moe.route.measure --help`.

The model reads windows of each text and says which experts its tokens visit. Every second window
makes each pool's profile: the share of visits that each expert gets. Whose profile a window's
visits fit best is its label, so that the model itself decides what belongs together; the classifier
then learns to tell the label from the text alone. The other windows say how well it does.

Shape letters: W windows, X experts of all layers, P pools, B buckets of trigrams.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from model_code.common.cache import KVCache
from model_code.common.errors import UserError
from model_code.common.model_folder import Model, load_folder
from model_code.common.span import Span
from model_code.moe.layers import mixtures
from model_code.moe.route.router import BUCKETS, POOLS_FILE, PoolRouter, features

WINDOW, _BATCH = 128, 8  # tokens
_LEAST_WINDOWS = 8  # of each text
_STEPS, _RATE, _DECAY = 300, 0.5, 1e-6
_SCALE = 100.0  # features are shares; the weights are kept small by them


@dataclass(frozen=True)
class Pool:
    """A pool's name, and a text of the kind that it is for."""

    name: str
    text: str


def measure(folder: Path, pools: Sequence[Pool], report: Callable[[str], None]) -> PoolRouter:
    """Return a router between the pools, by the experts that the model in `folder` visits."""
    if len({pool.name for pool in pools}) < 2 or len(pools) > len({pool.name for pool in pools}):
        raise UserError(
            f"--text names {len(pools)} pools; allowed are two and more, with different names"
        )
    model = load_folder(folder, context=WINDOW, dtype=torch.float32)
    if not mixtures(model.decoder):
        raise UserError(f"{folder}: the model has no routed experts, so there is no use of them")
    texts, visits, kinds = [], [], []
    for number, pool in enumerate(pools):
        windows = _windows(model, pool)
        texts += [text for text, _ in windows]
        visits.append(_visits(model, [tokens for _, tokens in windows]))
        kinds += [number] * len(windows)
    return _fit(
        texts, torch.cat(visits), torch.tensor(kinds), [pool.name for pool in pools], report
    )


def _windows(model: Model, pool: Pool) -> list[tuple[str, list[int]]]:
    """Return windows of a text: each as text, and as its tokens."""
    found = []
    pieces = [pool.text[at : at + 8 * WINDOW] for at in range(0, len(pool.text), 8 * WINDOW)]
    for piece in pieces:
        tokens = model.tokenizer.encode(piece)[:WINDOW]
        if len(tokens) == WINDOW:
            found.append((piece[: 3 * WINDOW], tokens))
    if len(found) < _LEAST_WINDOWS:
        raise UserError(
            f"--text {pool.name}: gives {len(found)} windows of {WINDOW} tokens; allowed are "
            f"{_LEAST_WINDOWS} and more"
        )
    return found


@torch.inference_mode()
def _visits(model: Model, windows: Sequence[list[int]]) -> Tensor:
    """Return how often each window's tokens visit each expert of each layer, [W, X]."""
    parts = mixtures(model.decoder)
    rows = []
    for at in range(0, len(windows), _BATCH):
        tokens_BS = torch.tensor(windows[at : at + _BATCH])
        counts: list[Tensor] = []
        for mixture in parts.values():
            mixture.watch = partial(_count, counts, len(tokens_BS), len(mixture.router.weight))
        cache = KVCache(
            model.decoder.architecture, slots=len(tokens_BS), context=WINDOW, dtype=torch.float32
        )
        model.decoder(tokens_BS, cache, Span(0, torch.zeros(len(tokens_BS)).long(), WINDOW))
        rows.append(torch.cat(counts, dim=1))
    return torch.cat(rows).float()


def _count(counts: list[Tensor], windows: int, experts: int, experts_TA: Tensor) -> None:
    of_each = experts_TA.reshape(windows, -1)
    found_WE = torch.zeros(windows, experts)
    counts.append(found_WE.scatter_add_(1, of_each, torch.ones(of_each.shape)))


def _fit(
    texts: Sequence[str], visits_WX: Tensor, kinds_W: Tensor, names: Sequence[str],
    report: Callable[[str], None],
) -> PoolRouter:  # fmt: skip
    P = len(names)
    fitted = torch.arange(len(texts)) % 2 == 0
    profile_PX = torch.stack([visits_WX[fitted & (kinds_W == kind)].sum(0) for kind in range(P)])
    profile_PX = (profile_PX + 1) / (profile_PX + 1).sum(1, keepdim=True)
    labels_W = (visits_WX @ profile_PX.log().T).argmax(1)
    features_WB = torch.zeros(len(texts), BUCKETS)
    for row, text in zip(features_WB, texts, strict=True):
        found = features(text)
        row[[*found]] = torch.tensor([*found.values()])
    weight_PB, bias_P = _regress(features_WB[fitted], labels_W[fitted], P)
    chosen_W = (features_WB @ weight_PB.T + bias_P).argmax(1)
    held = ~fitted
    measured = {
        "windows": float(held.sum()),
        "agrees_with_the_model": _share(chosen_W[held] == labels_W[held]),
        "agrees_with_the_text": _share(chosen_W[held] == kinds_W[held]),
        "model_agrees_with_the_text": _share(labels_W[held] == kinds_W[held]),
        **_coverage(visits_WX[held], chosen_W[held], profile_PX),
    }
    report(
        f"router of pools {', '.join(names)}: of {measured['windows']:.0f} windows that it was not "
        f"fitted to, {measured['agrees_with_the_model']:.0%} go where the model's experts fit; "
        f"half of the experts serve {measured['visits_of_the_warm_half']:.0%} of visits in a "
        f"window's pool, {measured['visits_of_a_common_half']:.0%} if all pools keep the same"
    )
    return PoolRouter(tuple(names), tuple(bias_P.tolist()), weight_PB.tolist(), measured)


def _regress(features_WB: Tensor, labels_W: Tensor, pools: int) -> tuple[Tensor, Tensor]:
    """Return weights [P, B] and biases [P] of a softmax regression."""
    weight_PB = torch.zeros(pools, BUCKETS, requires_grad=True)
    bias_P = torch.zeros(pools, requires_grad=True)
    optimizer = torch.optim.Adam([weight_PB, bias_P], lr=_RATE)
    for _ in range(_STEPS):
        logits_WP = features_WB @ weight_PB.T + bias_P
        loss = functional.cross_entropy(logits_WP, labels_W) + _DECAY * weight_PB.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weight_PB.detach(), bias_P.detach()


def _coverage(visits_WX: Tensor, chosen_W: Tensor, profile_PX: Tensor) -> dict[str, float]:
    """Return the visits that half of the experts serve: the pool's busiest, or those of all."""
    half = profile_PX.shape[1] // 2
    own_PX = torch.zeros_like(profile_PX).scatter_(1, profile_PX.topk(half, dim=1).indices, 1.0)
    common = profile_PX.mean(0).topk(half).indices
    total = visits_WX.sum()
    return {
        "visits_of_the_warm_half": ((visits_WX * own_PX[chosen_W]).sum() / total).item(),
        "visits_of_a_common_half": (visits_WX[:, common].sum() / total).item(),
    }


def _share(right: Tensor) -> float:
    return round(right.float().mean().item(), 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write pools.json; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model_code.moe.route.measure")
    parser.add_argument("folder", type=Path, help="a model's folder")
    parser.add_argument(
        "--text", action="append", default=[], metavar="POOL=FILE", help="once for each pool"
    )
    parser.add_argument("--out", type=Path, help=f"where to write; FOLDER/{POOLS_FILE} if left out")
    given = parser.parse_args(arguments)
    try:
        router = measure(given.folder, [_read(each) for each in given.text], print)
        (given.out or given.folder / POOLS_FILE).write_text(router.dump())
    except UserError as error:
        print(f"measure: {error}", file=sys.stderr)
        return 1
    return 0


def _read(given: str) -> Pool:
    name, _, path = given.partition("=")
    if not name or not path:
        raise UserError(f"--text {given!r} is not POOL=FILE, such as code=sources.txt")
    try:
        return Pool(name, Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {path} cannot be read as UTF-8: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
