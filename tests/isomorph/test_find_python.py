"""Which Python `make` takes. Those here only say what a real one would."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isomorph.find_python import main

ROOT = Path(__file__).resolve().parents[2]


class Machine:
    """Folders with Pythons, in the order in which they are made."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.folders, self._patch = folder, list[str](), monkeypatch
        monkeypatch.setenv("PATH", str(folder / "not-there"))

    def python(
        self, place: str, version: str = "3.11", seconds: float = 1.0, *,
        name: str = "python3", lacks: bool = False, real: str = "",
    ) -> str:  # fmt: skip
        path = self.folder / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = [int(part) for part in version.split(".")]
        said = json.dumps([numbers, lacks, seconds, real or str(path)])
        path.write_text(f"#!/bin/sh\necho '{said}'\n")
        path.chmod(0o755)
        if str(path.parent) not in self.folders:
            self.folders.append(str(path.parent))
        self._patch.setenv("PATH", os.pathsep.join(["/not/there", *self.folders]))
        return str(path)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_the_first_on_the_path_is_taken_in_silence(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    first = machine.python("first", seconds=1.0)
    machine.python("second", seconds=0.9)
    assert main([]) == 0
    assert capsys.readouterr() == (f"{first}\n", "")


def test_one_of_the_same_version_that_is_much_faster_is_taken_and_told(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    first = machine.python("pyenv", seconds=1.4)
    second = machine.python("usr", seconds=1.0)
    assert main([]) == 0
    assert capsys.readouterr() == (
        f"{second}\n",
        f"taking {second}: {first} takes 1.4 times as long for the same; make PYTHON=... takes "
        "another, once .venv is gone\n",
    )


def test_a_faster_one_of_another_version_is_not_taken(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    first = machine.python("first", "3.12", seconds=1.4)
    machine.python("second", "3.11", seconds=1.0)
    assert main([]) == 0
    assert capsys.readouterr() == (f"{first}\n", "")


def test_one_that_is_too_old_or_has_no_venv_is_passed_over(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.python("usr", "3.9", name="python3")
    machine.python("usr", "3.11", name="python3.11", lacks=True)
    machine.python("usr", "3.12", name="python3.12-config")
    third = machine.python("usr", "3.12", name="python3.12")
    assert main([]) == 0
    out, said = capsys.readouterr()
    assert out == f"{third}\n"
    assert said.startswith(f"taking {third}: {machine.folder}/usr/python3 is 3.9; make PYTHON=")


def test_the_same_one_by_several_names_is_tried_as_one(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    first = machine.python("shims", seconds=1.0, real="/real/python")
    machine.python("shims", seconds=0.5, name="python3.11", real="/real/python")
    assert main([]) == 0
    assert capsys.readouterr() == (f"{first}\n", "")


def test_a_named_one_is_taken_however_slow(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    named = machine.python("slow", seconds=9.0, name="mine")
    machine.python("fast", seconds=1.0)
    assert main([named]) == 0
    assert capsys.readouterr() == (f"{named}\n", "")


def test_fails_when_none_will_do(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    old = machine.python("one", "3.9")
    bare = machine.python("two", lacks=True)
    broken = Path(machine.python("three"))
    broken.write_text("#!/bin/sh\nexit 1\n")
    assert main([]) == 1
    assert capsys.readouterr() == (
        "",
        f"isomorph needs Python 3.11 or newer: {old} is 3.9; {bare} has no ensurepip and venv "
        f"(Debian: python3-venv); {broken} cannot be run; name another with make PYTHON=...\n",
    )


def test_fails_when_there_is_none(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "newer: nothing on the PATH is called python3; name" in capsys.readouterr().err


def test_fails_when_the_named_one_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-python"]) == 1
    assert "newer: no-such-python cannot be run; name another" in capsys.readouterr().err


def test_an_old_python_can_read_it() -> None:
    source = (ROOT / "isomorph/find_python.py").read_text()
    assert ast.parse(source, feature_version=(3, 7)).body  # or a SyntaxError


def test_a_real_one_is_tried_as_make_does() -> None:
    command = [sys.executable, "isomorph/find_python.py", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{sys.executable}\n", "")
