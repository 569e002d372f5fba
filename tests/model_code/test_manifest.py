"""The manifest of a folder of weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from model_code.common.errors import WeightsError
from model_code.common.manifest import Manifest, build_manifest, verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "tiny"
    (home / "sub").mkdir(parents=True)
    (home / "model.gguf").write_bytes(b"weights")
    (home / "sub" / "b.json").write_bytes(b"{}")
    (home / ".hidden").write_bytes(b"x")
    (home / "manifest.json").write_bytes(b"old")
    return home


def test_it_lists_every_file_but_hidden_ones_and_itself_in_canonical_json(folder: Path) -> None:
    manifest = build_manifest(folder, "tiny")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert manifest.encode().startswith(
        b'{"files":[{"bytes":7,"path":"model.gguf","sha256":"' + digest.encode() + b'"},'
    )
    assert [file.path for file in manifest.files] == ["model.gguf", "sub/b.json"]
    assert manifest.encode().endswith(b'],"model":"tiny","version":1}')
    assert manifest.sha256 == hashlib.sha256(manifest.encode()).hexdigest()
    assert Manifest.decode(manifest.encode(), "x") == manifest
    verify(folder, manifest)


def test_fails_when_the_folder_is_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere: is not a folder"):
        build_manifest(tmp_path / "nowhere", "m")
    with pytest.raises(WeightsError, match="holds no files; it must hold a model's weights"):
        build_manifest(tmp_path, "m")


def test_fails_when_a_file_is_missing_truncated_too_long_or_altered(folder: Path) -> None:
    manifest, model = build_manifest(folder, "tiny"), folder / "model.gguf"
    for content, message in [
        (b"weight", "model.gguf: truncated: has 6 bytes, the manifest says 7"),
        (b"weightss", "model.gguf: too long: has 8 bytes, the manifest says 7"),
        (b"Weights", "model.gguf: sha256 is .* the manifest says"),
    ]:
        model.write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            verify(folder, manifest)
    model.unlink()
    with pytest.raises(WeightsError, match=r"model.gguf: is missing; the manifest lists it"):
        verify(folder, manifest)


def manifest_bytes(**change: Any) -> bytes:
    file = {"path": "a.bin", "bytes": 1, "sha256": "ab" * 32}
    files = change.pop("files", [file | change.pop("file", {})])
    return json.dumps({"version": 1, "model": "m", "files": files, **change}).encode()


@pytest.mark.parametrize(
    "path",
    ["../a", "/etc/passwd", "a/../b", "a//b", "", ".", "a/.hidden", "a\\b", "a\0b", "C:a",
     "a\n", "manifest.json", 5, None, "x" * 513],
)  # fmt: skip
def test_fails_when_a_path_could_leave_the_folder(path: Any) -> None:
    with pytest.raises(WeightsError, match="is refused; allowed: relative paths"):
        Manifest.decode(manifest_bytes(file={"path": path}), "s3://b/manifest.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is no valid JSON"),
        (b"[" * 100_000, "is no valid JSON"),
        (b"[]", "is no manifest of version 1"),
        (manifest_bytes(version=2), "is no manifest of version 1"),
        (manifest_bytes(files=[]), "must have a model and at least one file"),
        (manifest_bytes(model=5), "must have a model and at least one file"),
        (manifest_bytes(files=["a"]), "each file must have exactly path, bytes and sha256"),
        (manifest_bytes(file={"bytes": -1}), "a.bin: bytes must be a whole number, got -1"),
        (manifest_bytes(file={"bytes": True}), "bytes must be a whole number, got True"),
        (manifest_bytes(file={"sha256": "AB" * 32}), "sha256 must be 64 hexadecimal digits"),
        (
            manifest_bytes(files=[{"path": "a", "bytes": 1, "sha256": "ab" * 32}] * 2),
            "names a file",
        ),
    ],
)
def test_fails_when_the_manifest_is_no_manifest(data: bytes, message: str) -> None:
    with pytest.raises(WeightsError) as caught:
        Manifest.decode(data, "s3://b/p/manifest.json")
    assert str(caught.value).startswith("s3://b/p/manifest.json: ")
    assert message in str(caught.value)
