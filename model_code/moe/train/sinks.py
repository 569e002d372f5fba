"""Who is told of the steps of a run: standard output, a file, and what metrics.py sends to.

One line of JSON each. `{ $.event = "step" }` is a metric filter that finds them in CloudWatch Logs.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model_code.moe.train.metrics import Metrics
from model_code.moe.train.recipe import Recipe
from model_code.moe.train.records import Sink, Step


def sinks(given: argparse.Namespace, recipe: Recipe) -> list[Sink]:
    """Return who is told by what the command line and the environment say.

    Raises:
        SettingsError: The environment is wrong.
    """
    architecture, training = recipe.architecture, recipe.training
    parameters = {
        "config": recipe.name, "steps": given.steps, "seed": given.seed, "batch": training.batch,
        "context": training.context, "rate": training.rate, "gamma": training.gamma,
        "parameters": architecture.parameters, "active_parameters": architecture.active_parameters,
    }  # fmt: skip
    metrics = Metrics.from_environment(os.environ, run=recipe.name, parameters=parameters)
    return [metrics, *([StepFile(given.step_log)] if given.step_log else [])]


def announce(event: str, words: Mapping[str, Any]) -> None:
    """Print what happened besides steps."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(json.dumps({"event": event, **words, "time": time}), flush=True)


class StepFile:
    """Keeps each step once: those that are made again after a restart replace what they were."""

    def __init__(self, path: Path) -> None:
        self._path, self._begun = path, False

    def record(self, step: Step) -> None:
        """See `Sink`."""
        try:
            if not self._begun:
                self._begin(step.step)
            with self._path.open("a") as file:
                file.write(json.dumps(_words(step)) + "\n")
        except OSError as error:
            print(f"train: --step-log {self._path}: {error.strerror}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """See `Sink`."""

    def _begin(self, first: int) -> None:
        self._begun = True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text().splitlines() if self._path.is_file() else []
        kept = [line for line in lines if _step_of(line) < first]
        self._path.write_text("".join(line + "\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # half a line of a process that was killed
        return math.inf


def _words(step: Step) -> dict[str, Any]:
    """Return the fields of a line; what is not finite is null, since JSON has no word for it."""
    words = asdict(step)
    mfu = words.pop("mfu")
    words["mfu_percent"] = None if mfu is None else 100 * mfu
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in words.items()
    }
