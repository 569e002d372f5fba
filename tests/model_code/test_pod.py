"""pod.sh with a torchrun that is a few lines: who hears of the end, and what comes of it."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.model_code.lifecycle_node import SCRIPTS

# A torchrun with one rank that needs a moment to save; told itself, it would kill the rank.
TORCHRUN = """#!/bin/bash
echo "$@" >"$FOLDER/words"
trap 'touch "$FOLDER/torchrun-told"' TERM
(trap 'sleep 0.2; touch "$FOLDER/saved"; exit 0' TERM; touch "$FOLDER/begun"
 while :; do sleep 0.05; done) &
wait $!
while kill -0 $! 2>/dev/null; do sleep 0.05; done
exit "${ENDS:-0}"
"""
SHARDS = """#!/bin/bash
touch "$FOLDER/begun"
case "$*" in *shards*) exec sleep 60 ;; esac
"""
RUN = {
    "JOB_CONFIG": "tiny", "JOB_DATA": "small", "JOB_TEXTS": "0", "JOB_VOCABULARY": "64",
    "JOB_HELD_OUT": "0", "JOB_STEPS": "9", "JOB_RANKS": "2", "JOB_CHECKPOINT_EVERY": "5",
    "JOB_SEED": "0", "JOB_EXPERT_PARALLEL": "0", "JOB_BATCH": "0", "JOB_PEAK_TFLOPS": "0",
    "JOB_NAME": "moe-tiny", "HOSTNAME": "moe-tiny-worker-0",
}  # fmt: skip


class Pod:
    def __init__(self, folder: Path) -> None:
        self.folder, self.variables = folder, dict(RUN)
        (folder / "bin").mkdir()
        self.data = folder / "data" / "small"
        self.data.mkdir(parents=True)

    def start(self, python: str) -> "subprocess.Popen[str]":
        program = self.folder / "bin" / "python3"
        program.write_text(python)
        program.chmod(0o755)
        given = {"PATH": f"{self.folder}/bin:/usr/bin:/bin", "FOLDER": str(self.folder),
                 "ISOMORPH_SHARED": str(self.folder)}  # fmt: skip
        return subprocess.Popen(
            ["bash", str(SCRIPTS / "pod.sh")], env=self.variables | given, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def wait_for(self, name: str) -> None:
        until = time.monotonic() + 10
        while not (self.folder / name).exists():
            assert time.monotonic() < until, name
            time.sleep(0.01)


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_the_ranks_are_told_and_torchrun_is_not(pod):
    (pod.data / "train.tokens").touch()
    process = pod.start(TORCHRUN)
    pod.wait_for("begun")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    assert (pod.folder / "saved").exists()
    assert not (pod.folder / "torchrun-told").exists()
    assert "--nproc-per-node 2" in (pod.folder / "words").read_text()


@pytest.mark.parametrize("code", [0, 3])
def test_a_pod_ends_as_torchrun_does(pod, code):
    (pod.data / "train.tokens").touch()
    process = pod.start(f"#!/bin/bash\nexit {code}\n")
    assert process.wait(timeout=10) == code


def test_a_pod_that_makes_shards_ends_when_it_is_told(pod):
    process = pod.start(SHARDS)
    pod.wait_for("begun")
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=10) == 143


def test_texts_that_have_not_come_are_waited_for(pod):
    pod.variables["JOB_TEXTS"] = "1"
    program = SHARDS.replace("exec sleep 60", 'touch "$FOLDER/made"; exit 4')
    process = pod.start(program)
    time.sleep(0.3)
    assert not (pod.folder / "made").exists()
    (pod.data / "text").mkdir()
    (pod.data / "text" / "a.txt").write_text("a")
    assert process.wait(timeout=10) == 4
    assert (pod.folder / "made").exists()
