"""`kill -9` of any rank at any moment: all are started again, and the losses stay the same.

By torchrun, which imports torch for each rank anew, so that each kind of death is seen once: of the
first rank, and of the last one; while a checkpoint is on its way, and before a step was made. One
in the middle of four dies among ranks that are forked: what remains of them and what they read
is the same.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.model_code.conftest import ROOT
from tests.model_code.with_torch import moe_runs
from tests.model_code.with_torch.moe_ranks import together

pytestmark = [pytest.mark.torch, pytest.mark.slow]
STEPS = 8


class Run:
    """torchrun with some ranks, two of which share experts; its events can be waited for."""

    def __init__(self, data: Path, folder: Path, ranks: int) -> None:
        self.checkpoints, self.log = folder / "checkpoints", folder / "steps.jsonl"
        config = folder / "config.json"
        config.write_text(json.dumps({"model": moe_runs.MODEL, "training": moe_runs.TRAINING}))
        self.events: list[dict[str, Any]] = []
        self.ranks: dict[int, int] = {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
             str(ranks), "--max-restarts", "3", "--monitor-interval", "0.1",
             "-m", "model_code.moe.train", "--config", str(config), "--data", str(data),
             "--checkpoints", str(self.checkpoints), "--steps", str(STEPS), "--checkpoint-every",
             "2", "--expert-parallel", "2", "--step-log", str(self.log)],
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
            if self.events[-1]["event"] == "start":
                self.ranks = self._ranks()  # now, so that none has ended before it is killed
            if self.events[-1]["event"] == event and step in (None, self.events[-1].get("step")):
                return
        raise AssertionError(f"no {event} {step}: {self.events}")

    def kill(self, rank: int) -> None:
        os.kill(self.ranks[rank], signal.SIGKILL)

    def _ranks(self) -> dict[int, int]:
        """Return the process of each rank."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        found: dict[int, int] = {}
        for pid in map(int, children.split()):
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            found |= {int(word[5:]): pid for word in words if word.startswith(b"RANK=")}
        return found

    def end(self) -> list[float]:
        """Return the losses of all steps."""
        self.until("end")
        assert self.process.wait(60) == 0
        return [json.loads(line)["loss"] for line in self.log.read_text().splitlines()]

    def kept(self) -> list[str]:
        """Return all that is in the folder of the checkpoints."""
        return sorted(path.name for path in self.checkpoints.iterdir())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moe_runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run is whose third of four ranks was killed."""
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def undisturbed(data: Path, killed: Path) -> dict[int, list[float]]:
    """The losses of two and of four ranks that nobody kills; the one with a death is made, too."""
    run = {"data": str(data), "steps": STEPS, "training": {"expert_parallel": 2}}
    dying = run | {
        "checkpoints": str(killed / "checkpoints"), "checkpoint_every": 2,
        "step_log": str(killed / "steps.jsonl"), "killed": [2, 5],
    }  # fmt: skip
    [two], [four], [again] = together((2, [run]), (4, [run]), (4, [dying]))
    assert len(again["losses"]) < STEPS  # from a checkpoint, not from the start
    return {2: two["losses"], 4: four["losses"]}


@pytest.mark.timeout(900)
def test_losses_stay_the_same_when_the_first_and_the_last_of_two_ranks_are_killed(
    data: Path, undisturbed: dict[int, list[float]], tmp_path: Path
) -> None:
    run = Run(data, tmp_path, 2)
    try:
        run.until("step", 3)
        run.kill(1)  # while the checkpoint of step 2 may be on its way
        run.until("start")
        run.kill(0)  # before it has made a step again
        assert run.end() == undisturbed[2]
    finally:
        run.process.kill()
    assert sum(event["event"] == "start" for event in run.events) == 3
    assert run.kept() == ["step-00000006", "step-00000008"]


@pytest.mark.timeout(900)
def test_losses_stay_the_same_when_one_of_four_ranks_is_killed(
    undisturbed: dict[int, list[float]], killed: Path
) -> None:
    steps = (killed / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in steps] == undisturbed[4]
    kept = sorted(path.name for path in (killed / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000008"]
