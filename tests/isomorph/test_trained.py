"""Models that are trained here instead of downloaded."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from isomorph import samples, trained
from isomorph.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(trained, "CACHE", tmp_path)
    return tmp_path / "weights" / "tiny-deepseek"


def test_what_is_there_is_not_trained_again(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "model.safetensors").write_bytes(b"x")
    assert samples.fetch("tiny-deepseek") == (cache, False)


def test_what_is_missing_is_trained_by_the_command(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setenv("ISOMORPH_STATE", "the folder of the embedded AWS")

    def run(
        command: list[str], *, env: dict[str, str], **_: Any
    ) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        assert "ISOMORPH_STATE" not in env  # model code would build its kernels there
        out = Path(command[command.index("--out") + 1])
        out.mkdir()
        (out / "model.safetensors").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(trained, "find_spec", lambda _: True)
    monkeypatch.setattr(subprocess, "run", run)
    assert samples.fetch("tiny-deepseek") == (cache, True)
    [command] = asked
    assert command[1:4] == ["-m", "model_code.mla.train_tiny", "--out"]
    assert (cache / "model.safetensors").is_file()
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]  # nothing half written
    assert Path(command[6]).is_file()


def test_a_training_that_fails_is_told_with_its_own_last_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "noise\ntrain_tiny: no space left\n")

    monkeypatch.setattr(trained, "find_spec", lambda _: True)
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="could not be trained: train_tiny: no space left"):
        trained.fetch("tiny-deepseek")


def test_without_torch_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "find_spec", lambda name: None if name == "torch" else True)
    with pytest.raises(UserError, match="is trained here, which needs torch: run `make torch`"):
        trained.fetch("tiny-deepseek")


def test_the_sample_with_experts_has_a_trainer_and_a_config() -> None:
    assert trained.TRAINED["tiny-moe"] == "model_code.moe.train_tiny"
    assert (trained.ROOT / "config" / "models" / "tiny-moe.json").is_file()


def test_weights_in_several_files_are_not_trained_again(cache: Path) -> None:
    home = cache.with_name("tiny-moe")
    home.mkdir(parents=True)
    (home / "dense.safetensors").write_bytes(b"x")
    assert samples.fetch("tiny-moe") == (home, False)
