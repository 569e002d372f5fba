"""SageMaker's container contract, from an unpacked model.tar.gz without the repository."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from model_code.common.errors import WeightsError
from model_code.moe.serve import package
from tests.model_code.conftest import ROOT, events, free_port
from tests.model_code.with_torch.mixture import write_folder

pytestmark = pytest.mark.torch
# What SageMaker's images for PyTorch do not have; importing any of these must fail there.
ABSENT = ("starlette", "uvicorn", "prometheus_client", "aws_cdk", "transformers")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("archive")
    return package.build(write_folder(home / "mixture"), home / "model.tar.gz")


@pytest.fixture(scope="module")
def container(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The stand-in for the image's serving stack, and what it started; its URL."""
    home = tmp_path_factory.mktemp("opt")
    model = home / "mixture"
    with tarfile.open(archive) as packed:
        packed.extractall(model)  # noqa: S202 - our own
    (home / "sitecustomize.py").write_text(
        "import sys\nsys.modules.update(dict.fromkeys(" + repr(ABSENT) + "))\n"
    )
    port = free_port()
    env = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(home), "SAGEMAKER_BIND_TO_PORT": str(port),
        "SAGEMAKER_PROGRAM": "inference.py", "OMP_NUM_THREADS": "1", "ISOMORPH_KERNELS": "off",
        "ISOMORPH_STATE": str(home / "state"), "ISOMORPH_CONTEXT": "128", "ISOMORPH_QUEUE": "100",
        "ISOMORPH_DTYPE": "float32", "ISOMORPH_EXPERT_MIB": "1",
    }  # fmt: skip
    toolkit = ROOT / "model_code/moe/serve/toolkit.py"
    process = subprocess.Popen(
        [sys.executable, str(toolkit), "--model-dir", str(model)], cwd=home, env=env
    )
    url = f"http://127.0.0.1:{port}"
    _ping_until(url, 200, seconds=180, alive=lambda: process.poll() is None)
    yield url
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0


def invoke(url: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{url}/invocations", json=fields, timeout=60)


def test_it_answers_and_shows_which_experts_worked(container: str) -> None:
    answer = invoke(container, prompt="import", temperature=0, max_tokens=5, experts=True)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert found["model"] == "mixture"
    assert found["usage"]["completion_tokens"] == 5
    assert set(found["usage"]["experts"]["layers"]) == {"1", "2"}


def test_a_stream_comes_in_parts_and_says_the_same(container: str) -> None:
    whole = invoke(container, prompt="import", temperature=0, max_tokens=5).json()
    parts = []
    body = {"prompt": "import", "temperature": 0, "max_tokens": 5, "stream": True}
    with httpx.stream("POST", f"{container}/invocations", json=body, timeout=60) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        parts = [part for part in answer.iter_raw() if part]
    assert len(parts) > 1
    found = events(b"".join(parts).decode())
    text = "".join(each["choices"][0]["text"] for each in found)
    assert text == whole["choices"][0]["text"]


@pytest.mark.parametrize(
    ("body", "headers", "code", "says"),
    [
        (b'{"prompt":', {}, 400, "the body is not valid JSON"),
        (b'{"promt": "x"}', {}, 400, "unknown field 'promt'"),
        (b"x", {"content-type": "text/plain"}, 415, "allowed: application/json"),
        (b'{"prompt": "x"}', {"accept": "image/png"}, 406, "the client accepts 'image/png'"),
        (b'{"prompt": "' + b"x " * 400 + b'"}', {}, 400, "this server takes at most 127"),
        (b'{"prompt": "' + b"x" * (1 << 20) + b'"}', {}, 413, "larger than 1,048,576 bytes"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(
    container: str, body: bytes, headers: dict[str, str], code: int, says: str
) -> None:
    headers = {"content-type": "application/json", **headers}
    answer = httpx.post(f"{container}/invocations", content=body, headers=headers, timeout=60)
    assert answer.status_code == code, answer.text
    assert says in answer.json()["error"]["message"]


def test_100_clients_at_once_all_get_the_same(container: str) -> None:
    async def work() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(limits=limits, timeout=120) as http:
            body = {"prompt": "def f(", "temperature": 0, "max_tokens": 3}
            url = f"{container}/invocations"
            return await asyncio.gather(*(http.post(url, json=body) for _ in range(100)))

    answers = asyncio.run(work())
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1


def test_other_paths_and_bodies_without_a_length_are_refused(container: str) -> None:
    assert httpx.get(f"{container}/invocations").status_code == 404
    assert httpx.post(f"{container}/ping", content=b"x").status_code == 404
    chunked = httpx.post(f"{container}/invocations", content=iter([b"{}"]))
    assert chunked.status_code == 413


def test_a_model_that_cannot_be_loaded_fails_the_health_check(tmp_path: Path) -> None:
    code = tmp_path / "model" / "code"
    code.mkdir(parents=True)
    (code / "inference.py").write_text("def model_fn(d):\n    raise OSError('no weights')\n"
                                       "input_fn = predict_fn = output_fn = None\n")  # fmt: skip
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "model_code/moe/serve/toolkit.py"), "--model-dir",
         str(code.parent), "--port", str(port)], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        answer = _ping_until(f"http://127.0.0.1:{port}", 500)
        assert answer == "OSError: no weights\n"
    finally:
        process.kill()
        process.wait()


def _ping_until(
    url: str, code: int, *, seconds: float = 60, alive: Callable[[], bool] = lambda: True
) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert alive()
        try:
            answer = httpx.get(f"{url}/ping")
            if answer.status_code == code:
                return answer.text
        except httpx.TransportError:  # it does not listen yet
            pass
        time.sleep(0.05)
    raise AssertionError(f"no {code} in {seconds:.0f} s")


def test_an_archive_has_the_weights_at_its_root_and_the_code_below(archive: Path) -> None:
    with tarfile.open(archive) as packed:
        members = packed.getmembers()
    names = {member.name for member in members}
    assert {"config.json", "model.safetensors", "code/inference.py", "code/requirements.txt",
            "code/model_code/moe/model.py", "code/model_code/mla/model.py"} <= names  # fmt: skip
    assert not [name for name in names if "__pycache__" in name or name.startswith("/")]
    assert {(m.mode, m.uid, m.gid, m.mtime, m.uname) for m in members} == {(0o644, 0, 0, 0, "")}


def test_the_same_input_gives_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    again = package.build(archive.parent / "mixture", tmp_path / "again.tar.gz")
    assert again.read_bytes() == archive.read_bytes()


def test_compiled_graphs_go_along(archive: Path, tmp_path: Path) -> None:
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    (graphs / "plan.json").write_text("{}")
    made = package.build(archive.parent / "mixture", tmp_path / "with.tar.gz", graphs)
    with tarfile.open(made) as packed:
        assert "neuron/plan.json" in packed.getnames()


def test_what_is_no_models_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.tar.gz"
    assert package.main([str(tmp_path), str(out)]) == 1
    assert capsys.readouterr().err == (
        f"package: {tmp_path}: has no config.json, tokenizer.json; it must be a model's folder\n"
    )
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "evil.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(WeightsError, match=r"evil.safetensors: is no plain file"):
        package.build(tmp_path, out)
    (tmp_path / "evil.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"is not a folder; `isomorph compile moe` makes one"):
        package.build(tmp_path, out, tmp_path / "none")
    assert not list(tmp_path.glob("out.tar.gz*"))


def test_a_folder_without_inference_is_no_model_directory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "model_code/moe/serve/toolkit.py"), "--model-dir",
         str(tmp_path)], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"toolkit: {tmp_path}: has no code/inference.py\n"


def test_bodies_may_be_text_bytes_or_what_a_model_server_parsed() -> None:
    from model_code.moe.serve import inference

    given = {"prompt": "x", "max_tokens": 3}
    text = json.dumps(given)
    for body in (text, text.encode(), given):
        assert inference.input_fn(body, "application/json").max_tokens == 3
