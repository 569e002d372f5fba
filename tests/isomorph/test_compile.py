"""`isomorph compile`."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from isomorph.__main__ import cli
from isomorph.errors import UserError


def test_a_slug_without_graphs_is_refused() -> None:
    done = CliRunner().invoke(cli, ["compile", "gqa"])
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == "'gqa' has nothing to compile; allowed: moe"


@pytest.mark.torch
def test_a_folder_without_a_model_is_told_in_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["compile", "moe", "--weights", str(tmp_path)])
    assert isinstance(done.exception, UserError)
    assert str(tmp_path) in str(done.exception)
    assert "\n" not in str(done.exception)
