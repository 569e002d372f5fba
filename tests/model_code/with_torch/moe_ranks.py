"""Runs that several processes make together. One process starts this file; each rank forks off it.

So torch is imported once for all of them, a second and a half each. `together` starts it.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_code.common.imports import kept

with kept():
    import torch._dynamo  # noqa: F401  or FSDP imports it in every rank

    from model_code.moe.train.experts import mixtures
    from model_code.moe.train.parallel import local
    from model_code.moe.train.ranks import join
    from model_code.moe.train.recipe import TrainingError
    from model_code.moe.train.run import train
    from model_code.moe.train.sinks import StepFile
    from tests.model_code.conftest import ROOT, free_port
    from tests.model_code.with_torch.moe_runs import recipe

Run = dict[str, Any]
Round = tuple[int, list[Run]]


def together(*rounds: Round) -> list[list[dict[str, Any]]]:
    """Make rounds of runs, one after the other; return what the first rank of each found.

    A round is a number of processes and the runs that they make, one after the other. A run has
    `data`, `steps`, and what else `train` takes; `training` changes the recipe, `step_log` is a
    file for the steps. `killed` is a rank and a step: soon after it the rank is killed with
    SIGKILL, and when all others have ended of that, all are started again, as torchrun would.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.model_code.with_torch.moe_ranks", json.dumps(rounds)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
        text=True, capture_output=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    found: list[list[dict[str, Any]]] = [json.loads(line) for line in lines]
    assert len(found) == len(rounds), done
    return found


def main(rounds: Sequence[Round]) -> int:
    """Make the rounds; a rank that fails ends all."""
    for count, runs in rounds:
        if any("killed" in run for run in runs):
            ended = _make(count, runs)
            assert sorted(ended) == [-signal.SIGKILL, *[1] * (count - 1)], ended
            for run in runs:
                run.pop("killed", None)
        if any(_make(count, runs)):
            return 1
    return 0


def _make(count: int, runs: list[Run]) -> list[int]:
    """Fork the ranks of a round, wait for them, and return their exit codes."""
    os.environ |= {"WORLD_SIZE": str(count), "MASTER_PORT": str(free_port())}
    ranks = [_forked(rank, runs) for rank in range(count)]
    return [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]


def _forked(rank: int, runs: list[Run]) -> int:
    if child := os.fork():
        return child
    # PR_SET_PDEATHSIG: left alone, it would wait for the others for half an hour.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    os.environ["RANK"] = str(rank)
    code = 1
    try:
        _rank(runs)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _rank(runs: list[Run]) -> None:
    ranks = join("cpu")
    found: list[dict[str, Any]] = []
    for run in runs:
        if "checkpoints" in run:
            run["checkpoints"] = Path(run["checkpoints"])
        if "step_log" in run:
            run["sinks"] = [StepFile(Path(run.pop("step_log")))]
        if "killed" in run:
            rank, step = run.pop("killed")
            run["stopping"] = _Killed(step).stopping if ranks.index == rank else lambda: False
        try:
            done = train(recipe(**run.pop("training", {})), ranks=ranks, **run)
        except TrainingError as error:
            found.append({"error": str(error)})
            continue
        mixture: Any = next(mixtures(done.decoder))
        shape = list(local(mixture.experts.gate_up).shape)
        for part in (mixture.router, mixture.experts):
            part.unshard()
        found.append({
            "losses": done.losses, "held_out": done.held_out,
            "experts": shape,
            "dtypes": [str(local(each).dtype) for each in
                       (mixture.router.weight, mixture.experts.down)],
        })  # fmt: skip
    if ranks.first:
        print(json.dumps(found), flush=True)
    ranks.leave()


class _Killed:
    """Asked after each step whether the run should stop: amidst the next, the process dies."""

    def __init__(self, step: int) -> None:
        self._left = step

    def stopping(self) -> bool:
        self._left -= 1
        if not self._left:
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return False


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
