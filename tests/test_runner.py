"""What `python -m tests` says before it starts anything."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.__main__ import PARTS, files, main


def test_fails_when_the_disk_is_nearly_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**29))
    assert main(["e2e"]) == 2
    said = capsys.readouterr().err
    assert "has 0.5 GiB free; the part e2e takes 4 at least: make room" in said


def test_fails_when_there_is_no_such_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["all"]) == 2
    assert capsys.readouterr().err == f"no part all; there are: {', '.join(PARTS)}\n"


def test_what_takes_torch_is_left_out_where_it_is_not_needed() -> None:
    slow = files("slow", without="torch")
    assert "tests/local_aws/test_cluster_jobs.py" in slow
    assert not [path for path in slow if "with_torch" in path]
    assert all(Path(path).name.startswith("test_") for path in slow)
