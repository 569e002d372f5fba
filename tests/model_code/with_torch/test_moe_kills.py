"""`kill -9` of any rank at any moment: torchrun starts all again, and the losses stay the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_code.moe.train.checkpoints import whole
from tests.model_code.conftest import ROOT
from tests.model_code.with_torch import moe_runs

pytestmark = [pytest.mark.torch, pytest.mark.slow]
STEPS = 12


class Run:
    """torchrun with some ranks, whose events can be waited for."""

    def __init__(self, folder: Path, ranks: int, name: str) -> None:
        self.checkpoints, self.log = folder / name, folder / f"{name}.jsonl"
        config = folder / "config.json"
        training = {"context": 16, "batch": 8, "micro_batch": 2, "rate": 0.01, "warm_up": 2}
        config.write_text(json.dumps({"model": moe_runs.MODEL, "training": training}))
        self.events: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
             str(ranks), "--max-restarts", "3", "--monitor-interval", "0.1",
             "-m", "model_code.moe.train", "--config", str(config), "--data", str(folder / "data"),
             "--checkpoints", str(self.checkpoints), "--steps", str(STEPS), "--checkpoint-every",
             "2", "--expert-parallel", str(ranks), "--step-log", str(self.log)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        self._lines: Iterator[str] = iter(self.process.stdout)

    def until(self, event: str, step: int | None = None) -> None:
        for line in self._lines:
            if not line.startswith("{"):
                continue
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == event and step in (None, self.events[-1].get("step")):
                return
        raise AssertionError(f"no {event} {step}: {self.events}")

    def kill(self, rank: int) -> None:
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True)
        for pid in found.stdout.decode().split():
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in words:
                os.kill(int(pid), signal.SIGKILL)
                return
        raise AssertionError(f"rank {rank} is not there")

    def end(self) -> list[float]:
        """Return the losses of all steps."""
        self.until("end")
        assert self.process.wait(60) == 0
        return [json.loads(line)["loss"] for line in self.log.read_text().splitlines()]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks", [2, 4])
def test_losses_stay_the_same_whoever_is_killed(tmp_path: Path, ranks: int) -> None:
    moe_runs.make_data(tmp_path / "data")
    undisturbed = Run(tmp_path, ranks, "undisturbed").end()
    assert len(undisturbed) == STEPS
    run = Run(tmp_path, ranks, "killed")
    try:
        run.until("step", 3)
        run.kill(ranks - 1)  # while the checkpoint of step 2 may be on its way
        run.until("start")
        run.until("step", 5)
        time.sleep(0.05)
        run.kill(0)
        run.until("start")
        run.kill(1)  # before it has made a step again
        assert run.end() == undisturbed
    finally:
        run.process.kill()
    assert sum(event["event"] == "start" for event in run.events) == 4
    assert [path.name for path in whole(run.checkpoints)] == ["step-00000010", "step-00000012"]
    assert not list(run.checkpoints.glob(".*.saving"))


def test_a_run_that_is_asked_to_end_writes_a_checkpoint_first(tmp_path: Path) -> None:
    moe_runs.make_data(tmp_path / "data")
    run = Run(tmp_path, 2, "stopped")
    run.until("step", 3)
    run.process.terminate()
    run.until("end")
    run.process.wait(60)
    assert run.events[-1]["stopped"] is True
    assert whole(run.checkpoints)[-1].name == f"step-{run.events[-1]['step']:08}"
