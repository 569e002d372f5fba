"""Experts in S3: what is asked for, what is kept, what goes wrong."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from model_code.common.architecture import read
from model_code.common.errors import WeightsError
from model_code.common.weights import Location
from model_code.moe.experts import ExpertsUnavailableError, layout, source
from model_code.moe.experts.index import ExpertIndex, read_index
from model_code.moe.experts.source import DiskSource, S3Source
from tests.model_code.with_torch.mixture import write_folder

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("source")
    layout.lay_out(write_folder(home / "whole"), home / "mixture")
    return home / "mixture"


@pytest.fixture
def index(folder: Path) -> ExpertIndex:
    return read_index(folder, read(folder))


class Body(io.BytesIO):
    """A streamed answer."""


class Store:
    """get_object over a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ranges, self.down = folder, [], False
        self.change: Any = lambda data: data

    def get_object(self, **asked: str) -> dict[str, Any]:
        if self.down:
            raise EndpointConnectionError(endpoint_url="https://secret.example")
        self.ranges.append((asked["Key"], asked["Range"]))
        first, last = map(int, asked["Range"].removeprefix("bytes=").split("-"))
        data = (self.folder / Path(asked["Key"]).name).read_bytes()[first : last + 1]
        return {"Body": Body(self.change(data))}


def made(store: Store, index: ExpertIndex, copies: Path) -> S3Source:
    return S3Source(Location("bucket", "moe/m/", "0" * 64), index, copies, lambda: store)


def places(index: ExpertIndex) -> tuple[list[bytearray], list[memoryview]]:
    arrays = [bytearray(index.expert_bytes // 3) for _ in range(3)]
    return arrays, [memoryview(array) for array in arrays]


def expected(folder: Path, index: ExpertIndex, layer: int, number: int) -> list[bytearray]:
    arrays, views = places(index)
    DiskSource(folder, index).read(layer, number, views)
    return arrays


def test_an_expert_is_one_ranged_request_and_no_second_one(
    folder: Path, index: ExpertIndex, tmp_path: Path
) -> None:
    store = Store(folder)
    found = made(store, index, tmp_path)
    for _ in range(2):
        arrays, views = places(index)
        found.read(2, 5, views)
        assert arrays == expected(folder, index, 2, 5)
    [(key, asked)] = store.ranges
    assert key == "moe/m/experts-layer-002.safetensors"
    first, last = map(int, asked.removeprefix("bytes=").split("-"))
    assert last - first + 1 == index.expert_bytes


def test_copies_of_an_earlier_process_are_not_trusted(
    folder: Path, index: ExpertIndex, tmp_path: Path
) -> None:
    shutil.copy(folder / "dense.safetensors", tmp_path / "experts-layer-001.safetensors")
    arrays, views = places(index)
    made(Store(folder), index, tmp_path).read(1, 0, views)
    assert arrays == expected(folder, index, 1, 0)


def test_a_copy_that_was_damaged_is_fetched_again(
    folder: Path, index: ExpertIndex, tmp_path: Path
) -> None:
    store = Store(folder)
    found = made(store, index, tmp_path)
    arrays, views = places(index)
    found.read(1, 3, views)
    copy = tmp_path / "experts-layer-001.safetensors"
    copy.write_bytes(bytes(copy.stat().st_size))
    found.read(1, 3, views)
    assert arrays == expected(folder, index, 1, 3)
    assert len(store.ranges) == 2


def test_s3_that_is_down_is_not_asked_again_at_once(
    folder: Path, index: ExpertIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, (arrays, views) = Store(folder), places(index)
    found = made(store, index, tmp_path)
    store.down = True
    with pytest.raises(ExpertsUnavailableError) as error:
        found.read(1, 0, views)
    assert str(error.value) == (
        "an expert's weights cannot be loaded at the moment; try again later"
    )
    store.down = False
    with pytest.raises(ExpertsUnavailableError):
        found.read(1, 0, views)
    assert store.ranges == []
    monkeypatch.setattr(source, "_PAUSE_S", 0.0)
    found.read(1, 0, views)
    assert arrays == expected(folder, index, 1, 0)


def test_an_answer_that_ends_too_early_is_no_expert(
    folder: Path, index: ExpertIndex, tmp_path: Path
) -> None:
    store = Store(folder)
    store.change = lambda data: data[:-1]
    with pytest.raises(ExpertsUnavailableError):
        made(store, index, tmp_path).read(1, 0, places(index)[1])


def test_an_answer_with_another_digest_is_refused(
    folder: Path, index: ExpertIndex, tmp_path: Path
) -> None:
    store = Store(folder)
    store.change = lambda data: data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(
        WeightsError, match=r"s3://bucket/moe/m/experts-layer-001.safetensors: expert 0 of layer 1"
    ):
        made(store, index, tmp_path).read(1, 0, places(index)[1])


def test_a_full_disk_only_means_that_nothing_is_kept(
    folder: Path, index: ExpertIndex, tmp_path: Path
) -> None:
    store = Store(folder)
    found = made(store, index, tmp_path)
    (tmp_path / "experts-layer-001.safetensors").mkdir()  # cannot be written either
    for _ in range(2):
        arrays, views = places(index)
        found.read(1, 0, views)
        assert arrays == expected(folder, index, 1, 0)
    assert len(store.ranges) == 2
