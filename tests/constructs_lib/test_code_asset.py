import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from tests.cdk_app import new_stack

from constructs_lib import CodeAsset, ZipAsset  # isort: skip
from constructs_lib.code_asset import source_files, write_zip  # isort: skip


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "root"
    for name, text in {
        "model_code/__init__.py": "",
        "model_code/common/node/boot.sh": "echo boot\n",
        "model_code/common/decoder.py": "x = 1\n",
        "model_code/common/__pycache__/decoder.pyc": "cache",
        "model_code/common/tests/test_decoder.py": "",
        "model_code/gqa/serve/__main__.py": "",
        "model_code/mla/serve/__main__.py": "",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


INCLUDE = ["model_code/__init__.py", "model_code/common", "model_code/gqa"]


def zipped(root: Path) -> bytes:
    path = root.parent / "out.zip"
    write_zip(path, root, list(source_files(root, INCLUDE)))
    return path.read_bytes()


def test_holds_the_named_files_without_tests_caches_and_siblings(tree):
    zipped(tree)
    assert zipfile.ZipFile(tree.parent / "out.zip").namelist() == [
        "model_code/__init__.py",
        "model_code/common/decoder.py",
        "model_code/common/node/boot.sh",
        "model_code/gqa/serve/__main__.py",
    ]


def test_times_modes_and_owners_of_files_do_not_change_it(tree):
    before = zipped(tree)
    for path in tree.rglob("*.py"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    assert zipped(tree) == before


@pytest.mark.parametrize("name", ["__init__.py", "common/decoder.py", "gqa/serve/__main__.py"])
def test_altering_any_file_alters_the_digest(tree, name):
    before = hashlib.sha256(zipped(tree)).digest()
    path = tree / "model_code" / name
    path.write_text(path.read_text() + "\n")
    assert hashlib.sha256(zipped(tree)).digest() != before


def test_scripts_are_executable_and_nothing_else(tree):
    zipped(tree)
    modes = {
        entry.filename: (entry.external_attr >> 16) & 0o777
        for entry in zipfile.ZipFile(tree.parent / "out.zip").infolist()
    }
    assert modes.pop("model_code/common/node/boot.sh") == 0o755
    assert set(modes.values()) == {0o644}


def test_fails_when_a_named_folder_is_not_there(tree):
    with pytest.raises(ValueError, match="no 'model_code/moe' in root/"):
        list(source_files(tree, ["model_code/moe"]))


def test_the_published_bytes_are_those_of_the_digest(tree):
    stack = new_stack()
    asset = CodeAsset(stack, "Code", root=tree, include=INCLUDE)
    key = asset.url.rpartition("/")[2]
    outdir = Path(stack.node.root.synth().directory)  # type: ignore[attr-defined]
    assert hashlib.sha256((outdir / f"asset.{key}").read_bytes()).hexdigest() == asset.sha256


def test_a_node_may_be_allowed_exactly_this_object(tree, tmp_path):
    path = tmp_path / "wheels.zip"
    path.write_bytes(b"zip")
    asset = ZipAsset(new_stack(), "Wheels", path=path)
    bucket, key = asset.url.removeprefix("s3://").split("/")
    assert asset.object_arn == f"arn:aws:s3:::{bucket}/{key}"
