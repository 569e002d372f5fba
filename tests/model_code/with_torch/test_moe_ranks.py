"""Processes that train as one does: FSDP2, expert parallel, checkpoints of other numbers."""

from pathlib import Path
from typing import Any

import pytest

from model_code.moe.train.checkpoints import newest, read_progress
from model_code.moe.train.run import Trained, train
from tests.model_code.with_torch import moe_runs
from tests.model_code.with_torch.moe_ranks import together

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moe_runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data: Path) -> Trained:
    return train(moe_runs.recipe(), data=data, steps=STEPS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def found(data: Path, folder: Path) -> list[list[dict[str, Any]]]:
    """What two ranks found, in the order of the tests, then four, and then two again."""
    stop = _stopped_after_two(data, folder / "from one")
    plain = {"data": str(data), "steps": STEPS}
    recipe = {"micro_batch": 2, "expert_parallel": 2, "warm_up": 9}
    two_four, four_two = (
        plain | {"training": recipe, "checkpoints": str(folder / name)}
        for name in ("two to four", "four to two")
    )
    return together(
        (2, [
            plain,
            plain | {"training": {"expert_parallel": 2}, "checkpoints": str(folder / "two")},
            plain | {"training": {"expert_parallel": 2}, "checkpoints": str(stop)},
            plain | {"training": {"expert_parallel": 4}},
            plain | {"training": {"batch": 6}},
            plain | {"training": {"dtype": "bfloat16", "expert_parallel": 2, "recompute": True}},
            plain | {"training": {"micro_batch": 4}, "weights": str(folder)},
            two_four | {"steps": 3},
        ]),
        (4, [
            two_four | {"steps": 5},
            four_two | {"steps": 3},
            plain | {"training": {"expert_parallel": 4}},
        ]),
        (2, [four_two | {"steps": 5}]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def two(found: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return found[0]


def _stopped_after_two(data: Path, folder: Path) -> Path:
    """Train alone for two of `STEPS` steps."""
    asked: list[None] = []

    def stopping() -> bool:
        asked.append(None)
        return len(asked) == 2

    train(moe_runs.recipe(), data=data, steps=STEPS, checkpoints=folder, stopping=stopping)
    return folder


def close(losses: list[float]) -> Any:
    return pytest.approx(losses, rel=1e-4)  # sums in another order, over some steps


def test_ranks_that_share_all_parameters_train_as_one(
    two: list[dict[str, Any]], alone: Trained
) -> None:
    assert two[0]["losses"] == close(alone.losses)
    assert two[0]["held_out"] == pytest.approx(alone.held_out, rel=1e-4)
    assert two[0]["experts"] == [8, 16, 32]


def test_ranks_that_share_experts_train_as_one(two: list[dict[str, Any]], alone: Trained) -> None:
    assert two[1]["losses"] == close(alone.losses)
    assert two[1]["experts"] == [4, 32, 32]


def test_four_ranks_that_share_experts_train_as_one(
    found: list[list[dict[str, Any]]], alone: Trained
) -> None:
    assert found[1][2]["losses"] == close(alone.losses)
    assert found[1][2]["experts"] == [2, 32, 32]


def test_two_ranks_go_on_where_one_stopped(two: list[dict[str, Any]], alone: Trained) -> None:
    assert two[2]["losses"] == close(alone.losses[2:])


def test_one_rank_reads_what_two_wrote(
    two: list[dict[str, Any]], folder: Path, data: Path, alone: Trained
) -> None:
    path = newest(folder / "two")
    assert path is not None
    assert read_progress(path).ranks == 2
    more = train(moe_runs.recipe(), data=data, steps=STEPS + 1, checkpoints=folder / "two")
    assert len(more.losses) == 1
    assert more.losses[0] < alone.losses[0]


def test_ranks_that_do_not_divide_the_experts_are_refused(two: list[dict[str, Any]]) -> None:
    assert two[3]["error"] == (
        "small.json: training.expert_parallel is 4; allowed are divisors of the 2 ranks and of "
        "the 8 experts: 1, 2"
    )


def test_a_batch_that_ranks_do_not_divide_is_refused(two: list[dict[str, Any]]) -> None:
    assert two[4]["error"] == (
        "small.json: training.batch is 6; 2 ranks of micro_batch 2 take multiples of 4"
    )


def test_products_in_bfloat16_learn_nearly_the_same(
    two: list[dict[str, Any]], alone: Trained
) -> None:
    assert two[5]["losses"] == pytest.approx(alone.losses, rel=0.02)
    assert two[5]["losses"] != close(alone.losses)
    assert two[5]["dtypes"] == ["torch.float32", "torch.bfloat16"]  # of the router, of experts


def test_several_ranks_do_not_begin_with_weights(two: list[dict[str, Any]]) -> None:
    assert two[6]["error"] == "--weights is for one rank; start several from a checkpoint"


@pytest.mark.parametrize("to", [4, 2])
def test_a_run_goes_on_with_another_number_of_ranks(
    found: list[list[dict[str, Any]]], data: Path, to: int
) -> None:
    (*_, begun), (ended, begun_by_four, _), (ended_by_two,) = found
    if to == 2:
        begun, ended = begun_by_four, ended_by_two
    assert len(begun["losses"]) == 3
    assert len(ended["losses"]) == 2
    whole = train(moe_runs.recipe(warm_up=9), data=data, steps=5)
    assert begun["losses"] + ended["losses"] == pytest.approx(whole.losses, rel=1e-3)
