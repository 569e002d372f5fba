"""Prunes a model to 4:16, and checks one: `python -m model_code.moe.train.prune --help`.

The largest 4 of each 16 inputs of a matrix stay. With --data the loss on held-out text is printed
before and after, and with --steps the model is trained on with its zeros kept. This is for one
process; a model that needs several is trained on by the trainer, whose `on_update` takes `Masks`.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Read when torch is loaded: waiting threads that spin make training slower where others work too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from model_code.common.architecture import ModelError
from model_code.common.errors import UserError
from model_code.moe.train.data import Data, open_data
from model_code.moe.train.fine_tune import check_data, fine_tune, loss_of, recipe_of
from model_code.moe.train.sparsity import LAYOUTS, MATRICES, Sparsity, prune_folder, verify

_RATE = 1e-3
# What else a folder has, and keeps. A manifest or an index of experts would be of other bytes.
_BESIDES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json", "pools.json",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune or check a folder; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        if given.verify:
            print(f"{given.folder}: {verify(given.folder).text}")
        else:
            _prune(given)
    except (UserError, ModelError) as error:
        print(f"prune: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"prune: {error.filename or given.out}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_code.moe.train.prune")
    parser.add_argument("folder", type=Path, help="Hugging Face safetensors with config.json")
    parser.add_argument("out", type=Path, nargs="?", help="the folder to make; must not be there")
    parser.add_argument("--verify", action="store_true", help="only look whether FOLDER is 4:16")
    parser.add_argument("--matrices", choices=[*MATRICES], default="feed-forward",
                        help="all: those of attention too")  # fmt: skip
    parser.add_argument("--layout", choices=LAYOUTS, default="zeros",
                        help="packed: values and places; only our engine reads it")  # fmt: skip
    parser.add_argument("--data", help="shards made with FOLDER's tokenizer, one held out")
    parser.add_argument("--steps", type=int, default=0, help="of training with the zeros kept")
    parser.add_argument("--control", action="store_true",
                        help="train FOLDER as it is for as many steps, too")  # fmt: skip
    parser.add_argument("--rate", type=float, default=_RATE, help="the whole learning rate")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _prune(given: argparse.Namespace) -> None:
    if given.out is None:
        raise UserError("OUT is missing; it is the folder to make (or give --verify)")
    if given.out.exists():
        raise UserError(f"OUT is {given.out}, which is there already; name another")
    if given.steps < 0 or (given.steps and not given.data):
        raise UserError(
            f"--steps is {given.steps} with --data {given.data or 'left out'}; allowed are whole "
            f"numbers from 0, and from 1 only with --data"
        )
    if not 0 < given.rate < 1:
        raise UserError(f"--rate is {given.rate}; allowed is more than 0 and less than 1")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out.parent, prefix=".partial-") as scratch:
        made = _made(given, Path(scratch))
        for name in _BESIDES:
            if (given.folder / name).is_file():
                shutil.copy2(given.folder / name, made / name)
        report = verify(made)
        made.rename(given.out)
    print(f"{given.out}: {report.text}")


def _made(given: argparse.Namespace, scratch: Path) -> Path:
    """Return a folder in `scratch` with what was asked for."""
    sparsity = Sparsity(matrices=given.matrices, layout=given.layout)
    if not given.data:
        return _pruned(given.folder, scratch / "pruned", sparsity)
    zeros = Sparsity(matrices=given.matrices, layout="zeros")
    data = open_data(given.data)
    check_data(data, given.folder)
    _say(given.folder, data, given, "as it was")
    made = _pruned(given.folder, scratch / "zeros", zeros)
    _say(made, data, given, "pruned")
    if given.steps:
        made = _tuned(given, made, data, scratch / "tuned", zeros)
        _say(made, data, given, f"pruned, after {given.steps} steps with its zeros kept")
    if given.steps and given.control:
        dense = _tuned(given, given.folder, data, scratch / "control", None)
        _say(dense, data, given, f"not pruned, after {given.steps} steps")
    if given.layout == "zeros":
        return made
    return _pruned(made, scratch / "pruned", sparsity)


def _pruned(folder: Path, out: Path, sparsity: Sparsity) -> Path:
    out.mkdir()
    prune_folder(folder, out, sparsity)
    return out


def _tuned(
    given: argparse.Namespace, folder: Path, data: Data, out: Path, sparsity: Sparsity | None
) -> Path:
    out.mkdir()
    recipe = recipe_of(folder, rate=given.rate)
    fine_tune(folder, data, recipe, out, sparsity=sparsity, steps=given.steps, seed=given.seed)
    return out


def _say(folder: Path, data: Data, given: argparse.Namespace, when: str) -> None:
    loss = loss_of(folder, data, recipe_of(folder, rate=given.rate))
    print(f"{given.folder}: loss {loss:.4f} a token of held-out text, {when}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
