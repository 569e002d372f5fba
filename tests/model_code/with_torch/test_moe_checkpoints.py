"""Checkpoints are whole or not there, and a run goes on from them as if nothing had been."""

import json
import pickle
import shutil
from collections.abc import Callable
from enum import Enum
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING as MEMBERS
from torch.distributed.checkpoint.metadata import Metadata

from model_code.moe.train import checkpoints as saved
from model_code.moe.train.checkpoints import Checkpoints, Progress, newest, read_tensors, whole
from model_code.moe.train.ranks import ALONE
from model_code.moe.train.recipe import TrainingError
from model_code.moe.train.run import Trained, train
from tests.model_code.with_torch import moe_runs

pytestmark = pytest.mark.torch
RECIPE = moe_runs.recipe()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moe_runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data: Path) -> Trained:
    return train(RECIPE, data=data, steps=6)


@pytest.fixture(scope="module")
def after_four(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after step 4 of 6."""
    folder, told = tmp_path_factory.mktemp("run"), _Counter(4)
    train(RECIPE, data=data, steps=6, checkpoints=folder, checkpoint_every=3, stopping=told)
    return folder


class _Counter:
    """Says yes when it is asked for the last time."""

    def __init__(self, last: int) -> None:
        self.left = last

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.fixture
def run(after_four: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(after_four, tmp_path / "run"))


def test_a_run_that_is_told_to_stop_leaves_a_checkpoint_of_its_last_step(after_four: Path) -> None:
    assert [path.name for path in whole(after_four)] == ["step-00000003", "step-00000004"]


def test_a_run_goes_on_with_the_losses_of_an_undisturbed_one(
    run: Path, data: Path, undisturbed: Trained
) -> None:
    rest = train(RECIPE, data=data, steps=6, checkpoints=run)
    assert rest.losses == undisturbed.losses[4:]
    assert rest.held_out == undisturbed.held_out
    for one, other in zip(
        rest.decoder.state_dict().values(), undisturbed.decoder.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_run_whose_steps_are_made_makes_none(run: Path, data: Path) -> None:
    again = train(RECIPE, data=data, steps=4, checkpoints=run)
    assert (again.losses, again.step) == ([], 4)


def test_another_batch_goes_on_at_the_same_place_in_the_data(run: Path, data: Path) -> None:
    train(moe_runs.recipe(batch=4), data=data, steps=5, checkpoints=run)
    path = newest(run)
    assert path is not None
    assert saved.read_progress(path).sequences == 4 * 8 + 4


def test_only_so_many_checkpoints_are_kept(run: Path, data: Path) -> None:
    train(RECIPE, data=data, steps=7, checkpoints=run, checkpoint_every=1, keep=3)
    assert [path.name[-1] for path in whole(run)] == ["5", "6", "7"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.rename(path.with_name(f".{path.name}.saving")),  # killed before its name
        lambda path: (path / "checkpoint.json").unlink(),
        lambda path: (path / "checkpoint.json").write_text('{"files": '),
        lambda path: (path / "checkpoint.json").write_text("[]"),
        lambda path: (path / "__0_0.distcp").unlink(),
        lambda path: (path / "__0_0.distcp").write_bytes(b"half"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_never_loaded(
    run: Path, data: Path, undisturbed: Trained, damage: Callable[[Path], object]
) -> None:
    damage(run / "step-00000004")
    rest = train(RECIPE, data=data, steps=6, checkpoints=run)
    assert rest.losses == undisturbed.losses[3:]
    assert not list(run.glob(".*.saving"))


def test_training_may_change_tensors_as_soon_as_they_are_being_saved(tmp_path: Path) -> None:
    tensors = {"model.a": torch.zeros(2000, 1000)}
    checkpoints = Checkpoints(tmp_path, ALONE)
    checkpoints.save(tensors, progress())
    tensors["model.a"].add_(1)
    assert checkpoints.finish() is None
    found = {"model.a": torch.full((2000, 1000), 7.0)}
    read_tensors(tmp_path / "step-00000001", found)
    assert found["model.a"].abs().max() == 0


def progress(**changes: Any) -> Progress:
    values = {"step": 1, "sequences": 8, "seed": 0, "data": "d", "tokenizer": "t" * 64,
              "name": "small", "model": moe_runs.MODEL, "ranks": 1}  # fmt: skip
    return Progress(**(values | changes))


@pytest.mark.parametrize("name", [".distcp", ".metadata"])
def test_a_full_disk_leaves_the_last_whole_checkpoint(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fill_the_disk(monkeypatch, name)
    with pytest.raises(
        TrainingError,
        match=r"^checkpoint of step 6 was not written: the disk is full; the last whole checkpoint "
        r"is kept$",
    ):
        train(RECIPE, data=data, steps=6, checkpoints=run)
    assert [path.name for path in run.iterdir()] == ["step-00000003", "step-00000004"]


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have files whose name holds this go to where every write fails as on a full disk."""
    real = FileSystem.create_stream

    def full(self: FileSystem, path: Any, mode: str) -> Any:
        there = "/dev/full" if name in str(path) and mode == "wb" else path
        return real(self, there, mode)

    monkeypatch.setattr(FileSystem, "create_stream", full)


def test_training_goes_on_when_a_checkpoint_on_the_way_fails(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Trained
) -> None:
    told: list[tuple[str, Any]] = []
    with monkeypatch.context() as patch:
        fill_the_disk(patch, "step-00000003")
        done = train(RECIPE, data=data, steps=6, checkpoints=tmp_path, checkpoint_every=3,
                     announce=lambda event, words: told.append((event, words)))  # fmt: skip
    assert done.losses == undisturbed.losses
    assert told[0] == (
        "checkpoint_failed",
        {"step": 3, "error": "checkpoint of step 3 was not written: the disk is full; the last "
                             "whole checkpoint is kept"},
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


def test_a_checkpoint_of_another_config_is_refused(run: Path, data: Path) -> None:
    other = moe_runs.recipe(model={"hidden_size": 64})
    with pytest.raises(
        TrainingError,
        match=r"step-00000004: is of another config \(small\): hidden_size is 32 there and 64 in "
        r"small; give each its own --checkpoints$",
    ):
        train(other, data=data, steps=6, checkpoints=run)


def test_a_checkpoint_of_other_data_is_refused(run: Path, tmp_path: Path) -> None:
    other = moe_runs.make_data(tmp_path / "other", shards=1)
    with pytest.raises(TrainingError, match=r"read other data \(or with another --seed\): its pla"):
        train(RECIPE, data=other, steps=6, checkpoints=run)


def test_a_checkpoint_with_another_seed_is_refused(run: Path, data: Path) -> None:
    with pytest.raises(TrainingError, match=r"read other data \(or with another --seed\): its pla"):
        train(RECIPE, data=data, steps=6, checkpoints=run, seed=1)


def test_a_checkpoint_of_another_tokenizer_is_refused() -> None:
    with pytest.raises(
        TrainingError,
        match=r"^run: vocabulary mismatch: it was trained with tokenizer t{16}\.\.\., the data's "
        r"is u{16}\.\.\.$",
    ):
        saved.check_same(Path("run"), progress(), progress(tokenizer="u" * 64))


def test_a_checkpoint_of_another_version_is_refused(run: Path) -> None:
    marker = run / "step-00000004" / "checkpoint.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": 2}))
    with pytest.raises(TrainingError, match=r"is of version 2; this trainer reads 1$"):
        saved.read_progress(marker.parent)


def test_a_marker_that_says_something_else_is_refused(run: Path, data: Path) -> None:
    marker = run / "step-00000004" / "checkpoint.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"other": 2}))
    with pytest.raises(TrainingError, match=r"step-00000004: checkpoint\.json cannot be read: "):
        train(RECIPE, data=data, steps=6, checkpoints=run)


def test_numbers_that_changed_on_the_disk_are_refused(run: Path, data: Path) -> None:
    path = run / "step-00000004" / "__0_0.distcp"
    content = path.read_bytes()
    path.write_bytes(b"x" * len(content))
    with pytest.raises(
        TrainingError, match=r"step-00000004: damaged: .*; remove it to go on from the one before$"
    ):
        train(RECIPE, data=data, steps=6, checkpoints=run)


def write_index(path: Path, index: bytes) -> None:
    """Give a checkpoint another index, of which its marker knows."""
    (path / ".metadata").write_bytes(index)
    marker = json.loads((path / "checkpoint.json").read_text())
    marker["files"][".metadata"] = len(index)
    (path / "checkpoint.json").write_text(json.dumps(marker))


def test_a_checkpoint_that_python_3_11_2_wrote_is_read(
    run: Path, data: Path, undisturbed: Trained
) -> None:
    """It names a member of an enumeration by getattr, later ones by the member's number."""

    class Older(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            by_name = (getattr, (type(value), getattr(value, "name", "")))
            return by_name if isinstance(value, Enum) else NotImplemented

    path, index = run / "step-00000004", BytesIO()
    Older(index).dump(pickle.loads((path / ".metadata").read_bytes()))  # noqa: S301
    assert b"getattr" in index.getvalue()
    write_index(path, index.getvalue())
    rest = train(RECIPE, data=data, steps=6, checkpoints=run)
    assert rest.losses == undisturbed.losses[4:]


def test_a_forged_index_runs_nothing(run: Path, data: Path, tmp_path: Path) -> None:
    class Forged:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)

    write_index(run / "step-00000004", pickle.dumps(Forged()))
    with pytest.raises(TrainingError, match=r"damaged: its index names .*, which is no part of a "):
        train(RECIPE, data=data, steps=6, checkpoints=run)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("given", [(Metadata, "__init__"), (MEMBERS, "mro"), ("text", "join")])
def test_an_index_gets_at_nothing_but_members_of_enumerations(
    run: Path, given: tuple[object, str]
) -> None:
    class Forged:
        def __reduce__(self) -> tuple[Any, tuple[object, str]]:
            return getattr, given

    write_index(run / "step-00000004", pickle.dumps(Forged()))
    with pytest.raises(TrainingError, match=r"damaged: its index names builtins\.getattr, which "):
        read_tensors(run / "step-00000004", {})


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({})])
def test_an_index_that_is_none_is_refused(run: Path, content: bytes) -> None:
    (run / "step-00000004" / ".metadata").write_bytes(content)
    with pytest.raises(TrainingError, match=r"damaged: its index (cannot be read|is none); remove"):
        read_tensors(run / "step-00000004", {})


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"^--checkpoints .*/file/x: Not a directory$"):
        Checkpoints(tmp_path / "file" / "x", ALONE)
