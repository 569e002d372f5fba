"""Weights on their way to S3 and back."""

import errno
import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import boto3
import pytest

from model_code.common import weights
from model_code.common.errors import WeightsError
from model_code.common.manifest import build_manifest

pytestmark = pytest.mark.usefixtures("aws")
CONTENT = bytes(range(256)) * 400


@pytest.fixture
def s3() -> Any:
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    return client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "tiny"
    (home / "sub").mkdir(parents=True)
    (home / "model.gguf").write_bytes(CONTENT)
    (home / "sub" / "b.json").write_bytes(b"{}")
    return home


@pytest.fixture
def pushed(s3: Any, folder: Path) -> tuple[str, str]:
    uri, sha256 = weights.push(folder, s3, "models", "gqa").split("#sha256=")
    return uri, sha256


def key(uri: str, name: str) -> str:
    return uri.removeprefix("s3://models/") + name


def test_what_was_pushed_is_fetched_byte_for_byte(
    s3: Any, folder: Path, pushed: tuple[str, str], tmp_path: Path
) -> None:
    uri, sha256 = pushed
    assert uri == f"s3://models/gqa/tiny/{sha256[:16]}/"
    fetched = weights.fetch(uri, sha256, tmp_path / "state", s3=s3)
    assert (fetched / "model.gguf").read_bytes() == CONTENT
    assert (fetched / "sub/b.json").read_bytes() == b"{}"
    assert hashlib.sha256((fetched / "manifest.json").read_bytes()).hexdigest() == sha256


def test_files_of_many_parts_come_back_whole(
    s3: Any, pushed: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_PART_BYTES", 1000)
    fetched = weights.fetch(*pushed, tmp_path / "state", s3=s3)
    assert (fetched / "model.gguf").read_bytes() == CONTENT


def test_pushing_again_uploads_nothing_that_is_there(
    s3: Any, folder: Path, pushed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.delete_object(Bucket="models", Key=key(pushed[0], "sub/b.json"))
    uploaded: list[str] = []
    upload = s3.upload_file

    def note(path: str, *args: Any, **kwargs: Any) -> None:
        uploaded.append(Path(path).name)
        upload(path, *args, **kwargs)

    monkeypatch.setattr(s3, "upload_file", note)
    done: list[int] = []
    assert weights.push(folder, s3, "models", "gqa", progress=done.append) == "#sha256=".join(
        pushed
    )
    assert uploaded == ["b.json"]
    assert sum(done) == len(CONTENT) + 2


def test_the_manifest_is_uploaded_last(
    s3: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise boto3.exceptions.S3UploadFailedError("connection lost")

    monkeypatch.setattr(s3, "upload_file", broken)
    with pytest.raises(WeightsError, match=r"s3://models/gqa/tiny/.*/model.gguf: connection lost"):
        weights.push(folder, s3, "models", "gqa")
    assert "Contents" not in s3.list_objects_v2(Bucket="models")


def test_fails_when_the_bucket_does_not_exist(s3: Any, folder: Path) -> None:
    with pytest.raises(WeightsError, match="s3://nowhere/gqa/tiny/"):
        weights.push(folder, s3, "nowhere", "gqa")


def test_weights_that_are_there_are_not_fetched_again(
    s3: Any, pushed: tuple[str, str], tmp_path: Path
) -> None:
    first = weights.fetch(*pushed, tmp_path / "state", s3=s3)
    assert weights.fetch(*pushed, tmp_path / "state", s3="no client at all") == first


def test_fails_when_weights_that_are_there_were_truncated(
    s3: Any, pushed: tuple[str, str], tmp_path: Path
) -> None:
    fetched = weights.fetch(*pushed, tmp_path / "state", s3=s3)
    with (fetched / "model.gguf").open("ab") as file:
        file.truncate(100)
    with pytest.raises(WeightsError, match=r"model.gguf: truncated: has 100 bytes, the manifest"):
        weights.fetch(*pushed, tmp_path / "state", s3=s3)


def test_an_interrupted_fetch_goes_on_with_what_is_whole(
    s3: Any, pushed: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    whole = s3.get_object(Bucket="models", Key=key(pushed[0], "sub/b.json"))
    s3.delete_object(Bucket="models", Key=key(pushed[0], "sub/b.json"))
    with pytest.raises(WeightsError, match=r"sub/b.json: is missing"):
        weights.fetch(*pushed, state, s3=s3)
    [partial] = (state / "weights").iterdir()
    assert partial.name.endswith(".partial")
    assert (partial / "model.gguf").read_bytes() == CONTENT

    s3.put_object(Bucket="models", Key=key(pushed[0], "sub/b.json"), Body=whole["Body"].read())
    s3.delete_object(Bucket="models", Key=key(pushed[0], "model.gguf"))
    fetched = weights.fetch(*pushed, state, s3=s3)
    assert (fetched / "model.gguf").read_bytes() == CONTENT
    assert [path.name for path in (state / "weights").iterdir()] == [fetched.name]


def test_a_connection_that_breaks_midway_is_tried_again(
    s3: Any, pushed: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import IncompleteReadError

    get = s3.get_object
    broken: list[int] = []

    class Breaking(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise IncompleteReadError(actual_bytes=1, expected_bytes=2)

    def sometimes(**request: Any) -> Any:
        answer = get(**request)
        if "Range" in request and not broken:
            broken.append(1)
            answer["Body"] = Breaking()
        return answer

    monkeypatch.setattr(s3, "get_object", sometimes)
    assert weights.fetch(*pushed, tmp_path / "state", s3=s3).is_dir()
    assert broken


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-1] + b"!", "model.gguf: sha256 is .*, the manifest says"),
        (CONTENT[:-1], r"model.gguf: truncated: has 102,399 bytes, not 102,400"),
        (b"", r"model.gguf: is truncated"),
    ],
)
def test_fails_when_the_object_is_not_what_the_manifest_says_and_keeps_nothing(
    s3: Any, pushed: tuple[str, str], tmp_path: Path, content: bytes, message: str
) -> None:
    s3.put_object(Bucket="models", Key=key(pushed[0], "model.gguf"), Body=content)
    with pytest.raises(WeightsError, match=message):
        weights.fetch(*pushed, tmp_path / "state", s3=s3)
    left = [path.name for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert "model.gguf" not in left
    assert "model.gguf.part" not in left


def test_fails_when_the_manifest_has_another_digest(
    s3: Any, pushed: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(
        WeightsError, match=r"manifest.json: sha256 is .* ISOMORPH_WEIGHTS_SHA256 is"
    ):
        weights.fetch(pushed[0], "0" * 64, tmp_path / "state", s3=s3)


def test_fails_when_the_manifest_is_missing_or_the_place_is_no_prefix(
    s3: Any, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"s3://models/gqa/x/manifest.json: is missing"):
        weights.fetch("s3://models/gqa/x/", "0" * 64, tmp_path, s3=s3)
    with pytest.raises(WeightsError, match="it must be s3://bucket/prefix/"):
        weights.fetch("s3://models", "0" * 64, tmp_path, s3=s3)


def test_fails_before_it_begins_when_the_disk_is_too_small(
    s3: Any, pushed: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        WeightsError,
        match=r"the disk is too full for the weights: needs 67,211,266 bytes, has 1,000 free",
    ):
        weights.fetch(*pushed, tmp_path / "state", s3=s3)
    assert not [path for path in (tmp_path / "state").rglob("*") if path.is_file()]


def test_fails_when_the_disk_fills_up_midway_and_leaves_no_half_file(
    s3: Any, pushed: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match="the disk is too full for the weights: needs 102,402"):
        weights.fetch(*pushed, tmp_path / "state", s3=s3)
    assert not [path for path in (tmp_path / "state").rglob("*") if path.is_file()]


def test_fails_when_the_state_folder_cannot_be_written(
    s3: Any, pushed: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(WeightsError, match="cannot be written: Not a directory"):
        weights.fetch(*pushed, tmp_path / "state", s3=s3)


def test_a_local_folder_is_used_where_it_is_and_verified_if_a_digest_is_given(
    folder: Path, tmp_path: Path
) -> None:
    assert weights.fetch(str(folder), "", tmp_path) == folder
    manifest = build_manifest(folder, "tiny")
    (folder / "manifest.json").write_bytes(manifest.encode())
    assert weights.fetch(str(folder), manifest.sha256, tmp_path) == folder
    (folder / "model.gguf").write_bytes(b"other")
    with pytest.raises(WeightsError, match=r"model.gguf: truncated"):
        weights.fetch(str(folder), manifest.sha256, tmp_path)


def test_fails_when_the_local_folder_or_its_manifest_is_missing(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match="is 'nowhere': neither s3:// nor a folder"):
        weights.fetch("nowhere", "", tmp_path)
    with pytest.raises(WeightsError, match=r"manifest.json: is missing"):
        weights.fetch(str(folder), "0" * 64, tmp_path)
