"""Runs that several processes make together. Each starts this file; `together` starts them all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.model_code.conftest import ROOT, free_port


def together(ranks: int, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make runs one after the other on as many processes; return what the first rank found.

    A run has `data`, `steps`, and what else `train` takes; `training` changes the recipe.
    """
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.model_code.with_torch.moe_ranks", json.dumps(runs)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * ranks, said
    found: list[dict[str, Any]] = json.loads(said[0][0].splitlines()[-1])
    return found


def main() -> None:
    from model_code.moe.train.experts import mixtures
    from model_code.moe.train.parallel import local
    from model_code.moe.train.ranks import join
    from model_code.moe.train.recipe import TrainingError
    from model_code.moe.train.run import train
    from tests.model_code.with_torch.moe_runs import recipe

    ranks = join("cpu")
    found: list[dict[str, Any]] = []
    for run in json.loads(sys.argv[1]):
        if "checkpoints" in run:
            run["checkpoints"] = Path(run["checkpoints"])
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
        print(json.dumps(found))
    ranks.leave()


if __name__ == "__main__":
    main()
