"""The router of pools where there is no torch: what it reads, and what it chooses."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_code.common.errors import WeightsError
from model_code.moe.route import POOLS_FILE, PoolRouter
from model_code.moe.route.router import BUCKETS, features
from tests.model_code.conftest import ROOT


def router(**more: Any) -> PoolRouter:
    """One that knows colons."""
    found = features("a: ")
    weights = [[0.0] * BUCKETS, [5.0 if bucket in found else 0.0 for bucket in range(BUCKETS)]]
    return PoolRouter(**{"pools": ("prose", "code"), "bias": (1.0, 0.0), "weights": weights} | more)


def test_it_chooses_by_the_letters_of_a_texts_end() -> None:
    assert router().pool("nothing of that kind") == "prose"
    assert router().pool("a: a: a: ") == "code"
    assert router().pool("a: a: a: " + "nothing of that kind " * 400) == "prose"


def test_a_text_without_letters_goes_to_the_pool_that_is_likelier() -> None:
    assert router().pool("") == "prose"
    assert router(bias=(0.0, 0.5)).pool("x") == "code"


def test_shares_add_up_to_one_in_any_script() -> None:
    for text in ("abcdef", "日本語のテキスト", "\ud800 half a pair"):
        assert sum(features(text).values()) == pytest.approx(1)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / POOLS_FILE
    path.write_text(router(measured={"windows": 3.0}).dump())
    assert PoolRouter.read(path) == router(measured={"windows": 3.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"version": 2}', "is damaged: version 2 is not 1"),
        ('{"version":1,"pools":["a"],"bias":[],"weights":[],"measured":{}}', "differ in length"),
        ('{"version":1,"pools":["a"],"bias":[1],"weights":[[1]],"measured":{}}', "are not 1024"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / POOLS_FILE
    path.write_text(text)
    with pytest.raises(WeightsError, match=message):
        PoolRouter.read(path)


def test_a_missing_file_is_told_with_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"python -m model_code.moe.route.measure makes it"):
        PoolRouter.read(tmp_path / POOLS_FILE)


def test_the_standard_library_is_enough() -> None:
    code = (
        "import sys\nimport model_code.moe.route\n"
        "assert not {'torch', 'numpy', 'boto3', 'starlette'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
