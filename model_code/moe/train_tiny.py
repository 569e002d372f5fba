"""Trains a small mixture of experts: `python -m model_code.moe.train_tiny --help`.

For trying things out where no model can be downloaded. It reads two kinds of text that come with
every Python, its language reference and the source of its library, so that its experts have
something to share out. In a minute or two it learns to speak in words of these texts, and nothing
that deserves an answer.

Its experts are kept busy alike by a correction that is added to the router's scores, and moved
against each step's load (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

# Read when torch is loaded: waiting threads that spin make training slower where others work too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor

from model_code.common.architecture import ModelError, parse
from model_code.common.config_fields import load_json
from model_code.common.decoder import Decoder
from model_code.common.errors import UserError
from model_code.common.text import source_of_python, text_of_python, train_tokenizer
from model_code.mla import train_tiny
from model_code.moe.experts.layout import lay_out
from model_code.moe.model import MixtureOfExperts
from model_code.moe.route.measure import Pool, measure
from model_code.moe.route.router import POOLS_FILE

STEPS = 120
_SPEED = 0.01  # how far a correction moves in a step: many times DeepSeek's, for as few steps
_PIECE = 2_000  # characters of one kind, before as many of the other


def texts_of_python() -> dict[str, str]:
    """Return two kinds of text that come with Python, each about 450,000 characters."""
    prose = text_of_python()
    return {"prose": prose, "code": source_of_python()[: len(prose)]}


def mixed(texts: Sequence[str]) -> str:
    """Return the texts in pieces that take turns."""
    length = min(map(len, texts))
    return "".join(text[at : at + _PIECE] for at in range(0, length, _PIECE) for text in texts)


class Balance:
    """Moves the corrections of a model's routers against the load of their experts."""

    def __init__(self, decoder: Decoder) -> None:
        self._mixtures = [each for each in decoder.modules() if isinstance(each, MixtureOfExperts)]
        self.loads = [torch.zeros(len(each.router.weight)) for each in self._mixtures]
        for mixture, load_E in zip(self._mixtures, self.loads, strict=True):
            if mixture.router.correction is None:
                raise UserError(
                    "the model's routers have no correction to balance them with; allowed are "
                    "configs with scoring_func sigmoid, as config/models/tiny-moe.json"
                )
            mixture.router.correction.zero_()
            mixture.watch = partial(self._count, load_E)

    @staticmethod
    def _count(load_E: Tensor, experts_TA: Tensor) -> None:
        load_E += torch.bincount(experts_TA.flatten(), minlength=len(load_E))

    def __call__(self) -> None:
        """Take account of what was visited since the last call."""
        for mixture, load_E in zip(self._mixtures, self.loads, strict=True):
            assert mixture.router.correction is not None  # noqa: S101  checked at the start
            mixture.router.correction += _SPEED * torch.sign(load_E.mean() - load_E)
            load_E.zero_()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and write a model; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model_code.moe.train_tiny")
    parser.add_argument("--config", type=Path, required=True, help="a config.json")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--characters", type=int, default=sys.maxsize, help="read no more of each text"
    )
    given = parser.parse_args(arguments)
    try:
        _run(given, partial(print, flush=True))
    except (UserError, ModelError) as error:
        print(f"train_tiny: {error}", file=sys.stderr)
        return 1
    return 0


def _run(given: argparse.Namespace, report: Callable[[str], None]) -> None:
    if given.steps < 1:
        raise UserError(f"--steps is {given.steps}; allowed are whole numbers from 1")
    config, since = load_json(given.config), time.monotonic()
    texts = {name: text[: given.characters] for name, text in texts_of_python().items()}
    text = mixed([*texts.values()])
    tokenizer = train_tokenizer(text, parse(config).vocabulary)
    tokens = torch.tensor(tokenizer.encode(text).ids)
    decoder, loss = train_tiny.train(
        config, tokens, steps=given.steps, seed=given.seed, report=report, prepare=Balance
    )
    card = _card(given, decoder, len(text), loss)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out.parent) as scratch:
        whole = Path(scratch) / "whole"
        train_tiny.save(whole, decoder, tokenizer, config, card)
        lay_out(whole, Path(scratch) / "laid-out")
        pools = [Pool(name, text[-text_size(text) :]) for name, text in texts.items()]
        (Path(scratch) / "laid-out" / POOLS_FILE).write_text(measure(whole, pools, report).dump())
        train_tiny.replace(Path(scratch) / "laid-out", given.out)
    report(f"{given.out}: loss {loss:.2f} on unseen text, {time.monotonic() - since:.0f} s")


def text_size(text: str) -> int:
    """Return how many characters of a text the router of pools is measured on."""
    return min(len(text), 100_000)


def _card(given: argparse.Namespace, decoder: Decoder, characters: int, loss: float) -> str:
    part = next(layer.feed_forward for layer in decoder.architecture.layers[::-1])
    return (
        f"# {given.out.name}\n\nA toy with DeepSeek-V3's architecture, {part.experts} experts of "
        f"which a token visits {part.active}, {decoder.architecture.parameters:,} parameters, "
        f"trained for {given.steps} steps of {train_tiny.BATCH} x {train_tiny.LENGTH} tokens on "
        f"the language reference of Python and the source of its library (PSF licence; "
        f"{characters:,} characters), seed {given.seed}. Loss on text that it had not seen: "
        f"{loss:.2f} a token.\n\nIt is made to try software with. It knows nothing, and sequences "
        f"longer than {train_tiny.LENGTH} tokens were not in its training. The text's licence "
        f"holds for the weights.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
