"""Trains a small model of DeepSeek-V3's kind: `python -m model_code.mla.train_tiny --help`.

For trying things out where no model can be downloaded. In a minute or two it learns the spelling
and the phrases of its text, and nothing that deserves an answer. What it writes is an ordinary
folder in Hugging Face's layout. Its config's first_k_dense_replace should leave no experts, which
would be trained without balance here: model_code/moe/train_tiny.py has it.

Shape letters: B sequences, S tokens of each, V vocabulary.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Read when torch is loaded: waiting threads that spin make training slower where others work too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from model_code.common.architecture import ModelError, parse
from model_code.common.checkpoint import all_sources
from model_code.common.config_fields import load_json
from model_code.common.decoder import Decoder
from model_code.common.errors import UserError
from model_code.common.text import END, text_of_python, train_tokenizer
from model_code.common.uncached import states

BATCH, LENGTH = 8, 128
_PEAK_RATE, _WARM_UP = 3e-3, 20
_LEAST_TEXT = 50_000  # characters; less than this is no text to learn from


def train(
    config: Mapping[str, Any], tokens: Tensor, *, steps: int, seed: int,
    report: Callable[[str], None] = lambda _: None,
    prepare: Callable[[Decoder], Callable[[], None]] = lambda _: lambda: None,
) -> tuple[Decoder, float]:  # fmt: skip
    """Return a trained model, and its loss per token on text that it was not trained on.

    `prepare` gets the model before the first step, and what it returns is called after each.
    """
    torch.manual_seed(seed)
    decoder = Decoder(parse(config), context=LENGTH, dtype=torch.float32)
    for parameter in decoder.parameters():
        torch.nn.init.ones_(parameter) if parameter.dim() == 1 else torch.nn.init.normal_(
            parameter, std=0.02
        )
    after_step = prepare(decoder)
    held_out, learnt = tokens[: (BATCH + 1) * LENGTH], tokens[(BATCH + 1) * LENGTH :]
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=_PEAK_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / _WARM_UP, 1 - 0.9 * step / max(steps, 1))
    )
    for step in range(steps):
        starts = torch.randint(len(learnt) - LENGTH - 1, (BATCH,))
        loss = _loss(decoder, torch.stack([learnt[at : at + LENGTH + 1] for at in starts]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        after_step()
        if step % 50 == 0:
            report(f"step {step}: loss {loss.item():.2f}")
    with torch.no_grad():
        return decoder, _loss(decoder, held_out.unfold(0, LENGTH + 1, LENGTH)).item()


def _loss(decoder: Decoder, tokens_BS: Tensor) -> Tensor:
    given, wanted = tokens_BS[:, :-1], tokens_BS[:, 1:]
    logits_BSV = decoder.logits(states(decoder, given))
    return functional.cross_entropy(logits_BSV.flatten(0, 1), wanted.flatten())


def save(
    folder: Path, decoder: Decoder, tokenizer: Tokenizer, config: Mapping[str, Any], card: str
) -> None:
    """Write the folder whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        tensors = {
            source.name: source.order.theirs(source.place).detach().contiguous()
            for source in all_sources(decoder)
        }
        # Several of theirs may be parts of one of ours; a file holds each by itself.
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
        (made / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
        tokenizer.save(str(made / "tokenizer.json"))
        wrapper = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END,
                   "clean_up_tokenization_spaces": False}  # fmt: skip
        (made / "tokenizer_config.json").write_text(json.dumps(wrapper, indent=2) + "\n")
        (made / "README.md").write_text(card)
        replace(made, folder)


def replace(made: Path, folder: Path) -> None:
    """Let the folder `made` be called `folder`, whatever was called so."""
    if folder.exists():
        shutil.rmtree(folder)
    made.rename(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and write a model; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model_code.mla.train_tiny")
    parser.add_argument("--config", type=Path, required=True, help="a config.json")
    parser.add_argument("--text", type=Path, help="UTF-8; Python's own reference if left out")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        _run(given)
    except (UserError, ModelError) as error:
        print(f"train_tiny: {error}", file=sys.stderr)
        return 1
    return 0


def _run(given: argparse.Namespace) -> None:
    text, source = _read(given.text)
    if given.steps < 1:
        raise UserError(f"--steps is {given.steps}; allowed are whole numbers from 1")
    config, since = load_json(given.config), time.monotonic()
    tokenizer = train_tokenizer(text, parse(config).vocabulary)
    tokens = torch.tensor(tokenizer.encode(text).ids)
    decoder, loss = train(
        config, tokens, steps=given.steps, seed=given.seed, report=partial(print, flush=True)
    )
    card = (
        f"# {given.out.name}\n\nA toy with DeepSeek-V3's architecture (latent attention; no "
        f"experts), {decoder.architecture.parameters:,} parameters, trained for {given.steps} "
        f"steps of {BATCH} x {LENGTH} tokens on {source} ({len(text):,} characters), seed "
        f"{given.seed}. Loss on text that it had not seen: {loss:.2f} a token.\n\n"
        f"It is made to try software with. It knows nothing, and sequences longer than {LENGTH} "
        f"tokens were not in its training. The text's licence holds for the weights.\n"
    )
    save(given.out, decoder, tokenizer, config, card)
    print(f"{given.out}: loss {loss:.2f} on unseen text, {time.monotonic() - since:.0f} s")


def _read(path: Path | None) -> tuple[str, str]:
    if path is None:
        return text_of_python(), "the language reference of Python (PSF licence)"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {path} cannot be read as UTF-8: {error}") from error
    if len(text) < _LEAST_TEXT:
        raise UserError(
            f"--text {path} has {len(text):,} characters; allowed are {_LEAST_TEXT:,} and more"
        )
    return text, path.name


if __name__ == "__main__":
    sys.exit(main())
