"""A function's code: the same zip from the same files, and no larger than Lambda takes."""

import re
import zipfile
from pathlib import Path
from typing import ClassVar

import pytest

from tests.cdk_app import ROOT

from constructs_lib import function_code  # isort: skip
from constructs_lib.function_code import _append, unzipped_bytes, zip_code  # isort: skip

INCLUDE = ["model_code/__init__.py", "model_code/common", "model_code/sliding_window"]
HANDLER = ROOT / "model_code" / "sliding_window" / "handler"


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    path = tmp_path / "libraries.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lib/libgomp.so.1", "openmp")
    return path


def make(libraries: Path):
    bootstrap = "model_code/sliding_window/handler/bootstrap"
    return zip_code(libraries, root=ROOT, include=INCLUDE, bootstrap=bootstrap)


def test_the_same_files_make_the_same_zip(libraries, monkeypatch):
    names = []
    keep = function_code.sha256_of
    monkeypatch.setattr(function_code, "sha256_of", lambda path: names.append(keep(path)) or "x")
    make(libraries)
    make(libraries)
    assert names[0] == names[1]


def test_libraries_code_and_an_executable_bootstrap_are_in_it(libraries, tmp_path):
    made = tmp_path / "made.zip"
    made.write_bytes(libraries.read_bytes())
    _append(made, ROOT, INCLUDE, "model_code/sliding_window/handler/bootstrap")
    with zipfile.ZipFile(made) as archive:
        assert {"lib/libgomp.so.1", "bootstrap", "model_code/common/weights.py"} <= set(
            archive.namelist()
        )
        assert archive.getinfo("bootstrap").external_attr >> 16 == 0o100755


def test_fails_when_lambda_would_not_take_the_zip(libraries, monkeypatch):
    monkeypatch.setattr(function_code, "MAX_UNZIPPED_BYTES", 100)
    with pytest.raises(ValueError, match=r"unzips to .* set package to image \(10 GB\)"):
        make(libraries)


def test_what_lambda_takes_is_250_mib_unzipped(libraries):
    assert function_code.MAX_UNZIPPED_BYTES == 262_144_000
    assert unzipped_bytes(libraries) == len("openmp")


class TestDockerfile:
    """No hadolint comes from a package index, so its rules that apply here are checked by hand."""

    lines: ClassVar = [
        line.strip()
        for line in re.sub(r"\\\n", " ", (HANDLER / "Dockerfile").read_text()).splitlines()
        if line.strip() and not line.startswith("#")
    ]

    def test_the_base_is_one_image_with_a_tag_that_is_not_latest(self):
        [base] = [line for line in self.lines if line.startswith("FROM ")]
        assert re.fullmatch(r"FROM public\.ecr\.aws/lambda/python:3\.\d+", base)  # DL3006, DL3007

    def test_packages_are_locked_with_hashes_and_leave_no_cache(self):
        [pip] = [line for line in self.lines if "pip install" in line]
        assert "--require-hashes" in pip  # DL3013
        assert "--no-cache-dir" in pip  # DL3042
        [dnf] = [line for line in self.lines if "dnf install" in line]
        assert "-y" in dnf  # DL3038
        assert "dnf clean all" in dnf  # DL3040

    def test_it_copies_and_never_adds_and_what_it_copies_is_in_the_context(self):
        assert not [line for line in self.lines if line.startswith("ADD ")]  # DL3020
        for line in self.lines:
            if line.startswith("COPY "):
                source = next(word for word in line.split()[1:] if not word.startswith("--"))
                assert (ROOT / source).exists(), line

    def test_the_last_user_is_not_root_and_the_command_is_in_exec_form(self):
        users = [line.split()[1] for line in self.lines if line.startswith("USER ")]
        assert users[-1:] == ["nobody"]  # DL3002
        assert self.lines[-1].startswith('CMD ["')  # DL3025

    def test_no_sudo_and_no_change_of_directory_inside_a_step(self):
        assert not [line for line in self.lines if re.search(r"\bsudo\b|\bcd /", line)]
