"""Small models, and servers of them as nodes run them. torch is imported late: tests are found
without it."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.model_code.conftest import KERNELS, ROOT, ServerProcess, free_port

SMALL = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "first_k_dense_replace": 2,
    "vocab_size": 400, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
Start = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def latent_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the command made, from a config that is smaller than ours and a short text."""
    from model_code.common.text import text_of_python
    from model_code.mla import train_tiny  # torch: here, so that tests are found without it

    folder = tmp_path_factory.mktemp("train")
    config = json.loads((ROOT / "config/models/tiny-deepseek.json").read_text()) | SMALL
    (folder / "small.json").write_text(json.dumps(config))
    (folder / "text.txt").write_text(text_of_python()[:60_000])
    out = folder / "small"
    code = train_tiny.main(
        ["--config", str(folder / "small.json"), "--text", str(folder / "text.txt"),
         "--out", str(out), "--steps", "12"]
    )  # fmt: skip
    assert code == 0
    return out


@pytest.fixture
def start(latent_model: Path, tmp_path: Path) -> Iterator[Start]:
    """Start servers; each keyword is a setting without its ISOMORPH_ prefix."""
    from tests.model_code.with_torch.forked import Forked

    started: list[Forked] = []

    def start(**settings: object) -> ServerProcess:
        port, log = free_port(), tmp_path / f"{len(started)}.log"
        env = {
            "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1",
            "ISOMORPH_MODEL": "small", "ISOMORPH_ENGINE": "native",
            "ISOMORPH_WEIGHTS": str(latent_model),
            "ISOMORPH_STATE": str(tmp_path), "ISOMORPH_PORT_OVERRIDE": str(port),
            "ISOMORPH_CONTEXT": "512", "ISOMORPH_DTYPE": "float32", "ISOMORPH_SLOTS": "2",
            "ISOMORPH_LATENT_BLOCK": "64",
            **KERNELS,
            **{f"ISOMORPH_{name}": str(value) for name, value in settings.items()},
        }  # fmt: skip
        process = Forked("model_code.mla.serve", env, log)
        started.append(process)
        return ServerProcess(process, f"http://127.0.0.1:{port}", log)

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small mixture of experts, as transformers would keep it."""
    from tests.model_code.with_torch.mixture import write_folder

    return write_folder(tmp_path_factory.mktemp("whole") / "mixture")


@pytest.fixture(scope="module")
def divided(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with its experts in a file of their own."""
    from model_code.moe.experts import layout

    out = tmp_path_factory.mktemp("divided") / "mixture"
    layout.lay_out(whole, out)
    return out


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Threads that share the work, whatever this process was told: `python -m tests` says one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a compiler."""
    from model_code.common import kernels

    monkeypatch.setenv("ISOMORPH_KERNELS", "off")
    kernels.loaded.cache_clear()
    yield
    kernels.loaded.cache_clear()
