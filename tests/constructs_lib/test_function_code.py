"""A function's code: the same zip from the same files, and no larger than Lambda takes."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from local_aws.functions.invocation import Invocation
from local_aws.functions.runtime_api import RuntimeApi
from tests.cdk_app import ROOT

from constructs_lib import function_code  # isort: skip
from stacks.code import model_code_for  # isort: skip
from constructs_lib.function_code import _append, unzipped_bytes, zip_code  # isort: skip

INCLUDE = model_code_for("sliding_window")
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


def test_hadolint_has_nothing_to_say_about_the_dockerfile():
    tool = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([tool, HANDLER / "Dockerfile"], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


def test_what_the_dockerfile_copies_is_in_the_context():
    for line in (HANDLER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            source = next(word for word in line.split()[1:] if not word.startswith("--"))
            assert (ROOT / source).exists(), line


@pytest.mark.slow
def test_the_dockerfiles_steps_make_a_task_folder_that_answers(tmp_path):
    """Its pip and COPY steps, in an environment of its own; dnf's package is on every machine."""
    task, venv = tmp_path / "task", tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    text = re.sub(r"\\\n", " ", (HANDLER / "Dockerfile").read_text())
    [step] = re.findall(r"^RUN python (-m pip install [^&]+?) *&&", text, re.M)
    step = step.replace("${LAMBDA_TASK_ROOT}", str(task)).replace('"', "")
    step = step.replace("/tmp/requirements.txt", str(HANDLER / "requirements.txt"))  # noqa: S108
    # Our own pip, for that Python; what the handler imports is compiled when it is imported.
    words = step.replace("-m pip", f"-m pip --python {venv / 'bin' / 'python'}", 1).split()
    environment = {**os.environ, "PIP_NO_COMPILE": "1"}
    subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True)
    shutil.copytree(ROOT / "model_code", task / "model_code")
    shutil.copy2(HANDLER / "bootstrap", task / "bootstrap")
    variables = {
        "ISOMORPH_MODEL": "m",
        "ISOMORPH_WEIGHTS": "none",
        "ISOMORPH_CONTEXT": "64",
        "LAMBDA_TASK_ROOT": str(task),
        "PATH": f"{venv / 'bin'}:/usr/bin:/bin",
    }
    api = RuntimeApi()
    process = subprocess.Popen(
        [task / "bootstrap"], env={**variables, "AWS_LAMBDA_RUNTIME_API": api.address}
    )
    try:
        assert api.ready.wait(60)
        invocation = Invocation(b"{}", "arn", 30)
        api.give(invocation)
        assert invocation.ended.wait(30)
        invocation.finish()
        _, body = invocation.read()
        assert json.loads(body)["statusCode"] == 400
    finally:
        process.kill()
        process.wait()
        api.close()
