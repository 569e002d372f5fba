"""`python -m model_code.moe.train.prune`: what it prints, makes and refuses."""

# mypy: disable-error-code="no-untyped-call"

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model_code.common.engine import Generation
from model_code.common.engine.native import NativeEngine
from model_code.common.safetensors_folder import SINGLE
from model_code.common.sparse import VALUES, most_in_a_group
from model_code.common.text import text_of_python
from model_code.moe.train import shards
from model_code.moe.train.prune import main
from model_code.moe.train.sparsity import verify
from tests.model_code.with_torch.test_sparsity import EXPERT, changed, write

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, and a model with their tokenizer."""
    home = tmp_path_factory.mktemp("prune")
    (home / "text.txt").write_text(text_of_python()[:12_000])
    made = ["--out", str(home / "data"), "--vocabulary", "300", "--held-out", "600"]
    assert shards.main([str(home / "text.txt"), *made]) == 0
    write(home / "dense", vocab_size=300, max_position_embeddings=256)
    shutil.copy(home / "data" / "tokenizer.json", home / "dense")
    return home


def prune(home: Path, out: Path, *options: str) -> int:
    return main([str(home / "dense"), str(out), *options])


def losses(text: str) -> dict[str, float]:
    return {when: float(loss) for loss, when in re.findall(r"loss ([\d.]+) .*?, (.*)", text)}


def test_the_model_is_trained_on_with_its_zeros_and_the_losses_are_said(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(home / "data"), "--steps", "3", "--rate", "0.01", "--control"]
    assert prune(home, tmp_path / "out", *options) == 0
    printed = capsys.readouterr().out
    found = losses(printed)
    assert [*found] == [
        "as it was", "pruned", "pruned, after 3 steps with its zeros kept",
        "not pruned, after 3 steps",
    ]  # fmt: skip
    before, pruned, after, control = found.values()
    assert after < pruned
    assert control < before
    report = verify(tmp_path / "out")
    assert printed.splitlines()[-1] == f"{tmp_path / 'out'}: {report.text}"
    was, now = (load_file(folder / SINGLE) for folder in (home / "dense", tmp_path / "out"))
    assert all(now[name].dtype == tensor.dtype for name, tensor in was.items())
    zero = was[EXPERT].abs() < was[EXPERT].abs().median() / 10
    assert (now[EXPERT][zero] == 0).all()
    assert not torch.equal(now["lm_head.weight"], was["lm_head.weight"])


def test_the_engine_serves_a_packed_folder_with_the_same_words(home: Path, tmp_path: Path) -> None:
    async def words(folder: Path) -> str:
        engine = NativeEngine.load(folder, slots=1, context=64, dtype="float32")
        request = Generation(prompt="The value of", max_tokens=12, temperature=0)
        found = [piece.text async for piece in engine.generate(request)]
        await asyncio.to_thread(engine.close)
        return "".join(found)

    assert prune(home, tmp_path / "zeros") == 0
    assert prune(home, tmp_path / "packed", "--layout", "packed", "--matrices", "all") == 0
    assert prune(home, tmp_path / "all", "--matrices", "all") == 0
    served = {name: asyncio.run(words(tmp_path / name)) for name in ("packed", "all", "zeros")}
    assert served["packed"] == served["all"]
    assert served["zeros"]
    assert EXPERT + VALUES in load_file(tmp_path / "packed" / SINGLE)


def test_a_folder_is_verified_by_a_command(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(home, tmp_path / "out") == 0
    capsys.readouterr()
    assert main([str(tmp_path / "out"), "--verify"]) == 0
    assert "18 matrices with at most 4 of 16" in capsys.readouterr().out

    def break_mask(state: dict[str, torch.Tensor]) -> None:
        state[EXPERT] += 1e-3
        assert most_in_a_group(state[EXPERT]) == 16

    changed(tmp_path / "out", tmp_path / "broken", break_mask)
    assert main([str(tmp_path / "broken"), "--verify"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"prune: {tmp_path / 'broken'}: {EXPERT} has 16 numbers other than")
    assert said.count("\n") == 1


def test_what_fails_leaves_nothing_behind(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "odd", moe_intermediate_size=40)
    assert main([str(tmp_path / "odd"), str(tmp_path / "new" / "out")]) == 1
    assert "4:16 sparsity takes multiples of 16 inputs, got 40" in capsys.readouterr().err
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_is_one_line(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("model_code.moe.train.prune.prune_folder", full)
    assert prune(home, tmp_path / "out") == 1
    assert capsys.readouterr().err == f"prune: {tmp_path / 'out'}: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "3"], "--steps is 3 with --data left out; allowed are whole numbers from 0, "
         "and from 1 only with --data"),
        (["--steps", "-1", "--data", "x"], "--steps is -1 with --data x; allowed are"),
        (["--rate", "2"], "--rate is 2.0; allowed is more than 0 and less than 1"),
    ],
)  # fmt: skip
def test_options_that_are_wrong_are_named(
    home: Path, tmp_path: Path, options: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert prune(home, tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err


def test_folders_that_are_wrong_are_named(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(home / "dense")]) == 1
    assert "OUT is missing; it is the folder to make" in capsys.readouterr().err
    assert prune(home, home / "data") == 1
    assert "which is there already; name another" in capsys.readouterr().err
    assert main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "config.json: cannot be read: No such file or directory" in capsys.readouterr().err


def test_shards_that_do_not_fit_the_model_are_named(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = str(home / "text.txt")
    shards.main([text, "--out", str(tmp_path / "whole"), "--vocabulary", "300"])
    assert prune(home, tmp_path / "out", "--data", str(tmp_path / "whole")) == 1
    assert "holds no held-out shard to compare losses on; `python -m" in capsys.readouterr().err
    other = ["--out", str(tmp_path / "other"), "--vocabulary", "290", "--held-out", "400"]
    shards.main([text, *other])
    assert prune(home, tmp_path / "out", "--data", str(tmp_path / "other")) == 1
    said = capsys.readouterr().err
    assert "vocabulary mismatch: its shards were made with tokenizer" in said
    assert f"make shards with --tokenizer {home / 'dense' / 'tokenizer.json'}" in said
    assert json.loads((home / "dense" / "config.json").read_text())["vocab_size"] == 300
