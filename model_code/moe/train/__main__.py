"""`torchrun ... -m model_code.moe.train --config NAME --data DIR --checkpoints DIR --steps N`.

Without torchrun it trains on one rank. It goes on from the newest whole checkpoint; SIGTERM makes
it finish its step, write a checkpoint and end.
"""

import argparse
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

# Read when torch is loaded: waiting threads that spin make training slower where others work too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from model_code.common.config_fields import ModelError
from model_code.common.errors import UserError
from model_code.common.imports import kept
from model_code.moe.train.recipe import Recipe, TrainingError, load_recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, or say what training would take; returns the exit code."""
    given = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore", module=r"torch\.distributed")
    try:
        recipe = _recipe(given)
        return _dry_run(given, recipe) if given.dry_run else _train(given, recipe)
    except (UserError, ModelError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"train: {error}", file=sys.stderr, flush=True)
        return 1
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        # Leaving as usual waits for a checkpoint's thread, which may wait for a rank that is gone.
        os._exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_code.moe.train")
    parser.add_argument("--config", required=True, help="a name in configs/, or a .json file")
    parser.add_argument("--data", help="a folder with shards, or s3://bucket/prefix/")
    parser.add_argument("--checkpoints", type=Path, help="a folder that all ranks see")
    parser.add_argument("--steps", type=int, help="the last step's number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--keep", type=int, default=2, help="checkpoints that stay")
    parser.add_argument("--batch", type=int, help="sequences of a step, over all ranks")
    parser.add_argument("--expert-parallel", type=int, help="ranks that share the experts")
    parser.add_argument("--weights", type=Path, help="a Hugging Face folder to begin with")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--peak-tflops", type=float, help="of one device, for the utilization")
    parser.add_argument("--step-log", type=Path, help="a file for the steps, a line of JSON each")
    parser.add_argument("--dry-run", action="store_true", help="only say what it would take")
    parser.add_argument("--ranks", type=int, default=1, help="of the dry run")
    parser.add_argument("--memory-gb", type=float, help="of a device of the dry run")
    return parser


def _recipe(given: argparse.Namespace) -> Recipe:
    recipe = load_recipe(given.config)
    changes = {
        "batch": given.batch, "expert_parallel": given.expert_parallel,
        "device_memory_gb": given.memory_gb,
    }  # fmt: skip
    for key, value in changes.items():
        if value is not None and value <= 0:
            words = "memory-gb" if key == "device_memory_gb" else key.replace("_", "-")
            raise TrainingError(f"--{words} is {value}; allowed are numbers above 0")
    asked = {key: value for key, value in changes.items() if value is not None}
    return replace(recipe, training=replace(recipe.training, **asked))


def _dry_run(given: argparse.Namespace, recipe: Recipe) -> int:
    with kept():
        from model_code.moe.train.dry_run import weigh

    weight = weigh(recipe, given.ranks)
    print(weight)
    return 0 if weight.fits else 1


def _train(given: argparse.Namespace, recipe: Recipe) -> int:
    for name in ("data", "checkpoints", "steps"):
        if getattr(given, name) is None:
            raise TrainingError(f"--{name} is missing; only --dry-run does without")
    with kept():
        if "RANK" in os.environ:
            import torch._dynamo  # noqa: F401  FSDP would import it at its first step

        from model_code.moe.train.ranks import join
        from model_code.moe.train.run import train
        from model_code.moe.train.sinks import announce, sinks

    ranks = join(given.device)
    stop: list[int] = []
    # From here on only: a rank that waits for the others to come should end at once.
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    told = sinks(given, recipe) if ranks.first else []
    say = announce if ranks.first else lambda *_: None
    say("start", {"config": recipe.name, "ranks": ranks.count, "steps": given.steps,
                  "parameters": recipe.architecture.parameters,
                  "active_parameters": recipe.architecture.active_parameters})  # fmt: skip
    try:
        trained = train(
            recipe, data=given.data, ranks=ranks, steps=given.steps, seed=given.seed,
            checkpoints=given.checkpoints, checkpoint_every=given.checkpoint_every,
            keep=given.keep, weights=given.weights, sinks=told, announce=say,
            peak_flops=given.peak_tflops and given.peak_tflops * 1e12, stopping=lambda: bool(stop),
        )  # fmt: skip
    finally:
        for sink in told:
            sink.close()
    if trained.held_out is not None:
        say("held_out", {"step": trained.step, "loss": trained.held_out})
    say("end", {"step": trained.step, "stopped": bool(stop)})
    ranks.leave()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Leaving as usual now and then aborts a rank whose run is done: threads of torch are still
    # there when Python is not. Torchrun would take that for a failure and start all again.
    os._exit(code)
