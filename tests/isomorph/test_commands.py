"""The command line as a person meets it: one line for a mistake, JSON for a program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from isomorph.__main__ import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[2]


def isomorph(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "isomorph", *arguments],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "prdo"], "error: unknown environment 'prdo'; config/ has: dev, local"),
        (["bench", "no_such"], "error: no measurement no_such; there are: "),
        (["bench", "gqa", "--write", "x.md"], "error: --write goes with `isomorph bench common`"),
        (["run", "gqa", "Hello"], "error: the embedded AWS does not run; start it with `isomorph"),
        (["up", "rag"], "error: 'rag' cannot be brought up: config/local.yaml turns on moe"),
        (
            ["destroy", "local", "rag"],
            "error: local has no rag; it has: moe-training, moe-serving, mla, gqa, slid",
        ),
        (["weights", "push", "local", "gqa", "no/such"], "error: no/such is not a folder"),
        (["map", "--write", "no/such.md"], "error: no/such.md is not a file"),
        (["plan", "no-such-model"], "error: "),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = isomorph(*arguments, ISOMORPH_STATE=str(tmp_path / "none"))
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(said)


def test_a_command_that_does_not_exist_is_refused_with_exit_code_2() -> None:
    done = isomorph("deploy")
    assert done.returncode == 2
    assert "No such command 'deploy'" in done.stderr


@pytest.mark.parametrize("arguments", [["list"], ["check", "dev"], ["map"], ["plan", "llama-3-8b"]])
def test_json_is_json_and_nothing_else(arguments: list[str]) -> None:
    done = isomorph(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)


def test_down_without_anything_to_stop_says_so(tmp_path: Path) -> None:
    done = isomorph("down", ISOMORPH_STATE=str(tmp_path / "none"))
    assert (done.returncode, done.stderr) == (0, "the embedded AWS did not run\n")


def test_help_names_every_command() -> None:
    done = isomorph("--help")
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_what_synthesizes_nothing_does_not_wait_for_the_cdk() -> None:
    code = (
        "import sys, isomorph.__main__, isomorph.deployment, stacks.settings\n"
        "assert stacks.settings.environments()\n"
        "sys.exit('aws_cdk' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json(name: str) -> None:
    words = [name, "push"] if name == "weights" else [name]
    words += ["refresh"] if name == "prices" else []
    words += ["search"] if name == "plans" else []
    done = CliRunner().invoke(cli, [*words, "--help"])
    assert done.exit_code == 0, done.output
    assert "--json" in done.output


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "isomorph", "map"]
    writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.close()  # as `| head` does when it has seen enough
    assert writer.communicate(timeout=60)[1] == b""
