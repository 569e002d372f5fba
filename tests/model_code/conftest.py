"""Real weights, and servers as processes of their own."""

import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from isomorph import samples
from stacks.wheelhouse import FOLDER, HOST, wheelhouse_name

if TYPE_CHECKING:
    from tests.model_code.with_torch.forked import Forked

# As the engines have it; torch and llama.cpp read it when a test imports them first.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).parents[2]
# What the tests themselves compile, their servers need not compile again.
_CACHES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
KERNELS = {
    "ISOMORPH_KERNELS_CACHE": os.environ.get("ISOMORPH_KERNELS_CACHE")
    or str(_CACHES / "isomorph" / "kernels")
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave torch and transformers, ten seconds of imports, when they are not wanted."""
    unwanted = "not torch" in config.getoption("markexpr", "")
    return True if unwanted and collection_path.name == "with_torch" else None


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder with SmolLM2's GGUF file, downloaded if it is not there yet."""
    return samples.fetch("smollm2-135m-instruct")[0]


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels that gqa's list locks: of the zip that was built, or downloaded."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    built = FOLDER / wheelhouse_name("gqa", HOST, "llama.cpp")
    if built.is_file():  # its name has the list's digest
        with zipfile.ZipFile(built) as archive:
            archive.extractall(folder)
        return folder
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
    locked = ["--require-hashes", "-r", ROOT / "model_code/gqa/serve/requirements.txt"]
    subprocess.run([*pip, *locked, "-d", folder], check=True)
    return folder


@pytest.fixture(scope="session")
def gemma() -> Path:
    """The folder with Gemma 3 270M's GGUF file, under its terms."""
    return samples.fetch("gemma-3-270m")[0]


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An AWS in this process."""
    from moto import mock_aws

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield


@dataclass
class ServerProcess:
    """`python -m model_code.gqa.serve`, running."""

    process: "subprocess.Popen[bytes] | Forked"
    url: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    def complete(self, prompt: str, **fields: Any) -> dict[str, Any]:
        answer = self.post("/v1/completions", prompt=prompt, **fields)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def metric(self, name: str) -> float:
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise AssertionError(f"{name} is not in /metrics")

    def wait_until_ready(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log
            try:
                if self.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError("the server was not ready in time")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def start_server(
    weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers; each keyword is a setting without its ISOMORPH_ prefix."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**settings: object) -> ServerProcess:
        port = settings.pop("PORT_OVERRIDE", None) or free_port()
        env = {
            "PATH": os.environ["PATH"],
            "ISOMORPH_MODEL": "smollm2-135m-instruct",
            "ISOMORPH_ENGINE": "llama.cpp",
            "ISOMORPH_WEIGHTS": str(weights),
            "ISOMORPH_STATE": str(tmp_path_factory.mktemp("state")),
            "ISOMORPH_PORT_OVERRIDE": str(port),
            "ISOMORPH_CONTEXT": "512",
            **KERNELS,
            **{
                name if name.startswith("AWS_") else f"ISOMORPH_{name}": str(value)
                for name, value in settings.items()
            },
        }
        log = tmp_path_factory.mktemp("log") / "server.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "model_code.gqa.serve"], cwd=ROOT, env=env, stderr=stderr
            )
        started.append(process)
        return ServerProcess(process, f"http://127.0.0.1:{port}", log)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="session")
def llama_server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """One server that tests which leave it as it was may share."""
    server = start_server(SLOTS=4, QUEUE=16)
    server.wait_until_ready()
    return server


def events(text: str) -> list[dict[str, Any]]:
    """Return the JSON events of a stream, which must end with [DONE]."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]", text
    return [json.loads(line) for line in lines[:-1]]
