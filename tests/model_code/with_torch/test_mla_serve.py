"""Two servers of a model that was trained here, and the store between them: as nodes run them."""

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_code.common.architecture import read
from model_code.common.text import text_of_python, train_tokenizer
from model_code.mla import train_tiny
from tests.model_code.conftest import ROOT, ServerProcess, free_port
from tests.model_code.mla.valkey import Front, Valkey, make_certificate, wait_until

pytestmark = pytest.mark.torch

TEXT = text_of_python()
SMALL = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "first_k_dense_replace": 2,
    "vocab_size": 400, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
Start = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the command made, from a config that is smaller than ours and a short text."""
    folder = tmp_path_factory.mktemp("train")
    config = json.loads((ROOT / "config/models/tiny-deepseek.json").read_text()) | SMALL
    (folder / "small.json").write_text(json.dumps(config))
    (folder / "text.txt").write_text(TEXT[:60_000])
    out = folder / "small"
    code = train_tiny.main(
        ["--config", str(folder / "small.json"), "--text", str(folder / "text.txt"),
         "--out", str(out), "--steps", "12"]
    )  # fmt: skip
    assert code == 0
    return out


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    yield server
    server.kill()


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def start(**settings: object) -> ServerProcess:
        port, log = free_port(), tmp_path / f"{len(started)}.log"
        env = {
            "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1",
            "ISOMORPH_MODEL": "small", "ISOMORPH_ENGINE": "native", "ISOMORPH_WEIGHTS": str(model),
            "ISOMORPH_STATE": str(tmp_path), "ISOMORPH_PORT_OVERRIDE": str(port),
            "ISOMORPH_CONTEXT": "512", "ISOMORPH_DTYPE": "float32", "ISOMORPH_SLOTS": "2",
            "ISOMORPH_LATENT_BLOCK": "64",
            **{f"ISOMORPH_{name}": str(value) for name, value in settings.items()},
        }  # fmt: skip
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "model_code.mla.serve"], cwd=ROOT, env=env, stderr=stderr
            )
        started.append(process)
        return ServerProcess(process, f"http://127.0.0.1:{port}", log)

    yield start
    for process in started:
        process.kill()
        process.wait()


def ask(server: ServerProcess, prompt: str) -> tuple[str, int]:
    answer = server.complete(prompt, temperature=0, max_tokens=8)
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["text"], cached


def test_a_prompt_read_by_one_server_is_a_hit_on_the_other_through_tls(
    start: Start, valkey: Valkey, tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    front = Front(valkey.address, tls=tls)
    url = f"rediss://127.0.0.1:{front.address.port}"
    shared: dict[str, Any] = {"LATENT_STORE_URL": url, "LATENT_STORE_CA": certificate}
    servers = [start(**shared), start(**shared)]
    for server in servers:
        server.wait_until_ready(180)
    one, other = servers
    prompt = TEXT[:700]
    text, cached = ask(one, prompt)
    assert cached == 0
    wait_until(lambda: one.metric("isomorph_latent_stored_bytes_total") > 0)
    blocks = one.metric("isomorph_latent_misses_total")
    assert blocks >= 3
    wait_until(lambda: valkey.admin("DBSIZE") == blocks)
    again, cached = ask(other, prompt)
    assert again == text
    assert cached == 64 * blocks
    assert other.metric("isomorph_latent_hits_total") == blocks
    assert other.metric('isomorph_latent_time_to_first_token_seconds_count{reuse="hit"}') == 1
    front.close()


def test_a_server_answers_while_its_store_is_gone_and_ends_with_0(start: Start) -> None:
    server = start(LATENT_STORE_URL=f"redis://127.0.0.1:{free_port()}")
    server.wait_until_ready(180)
    for at in range(5):
        ask(server, TEXT[at : at + 400])
    assert server.metric("isomorph_latent_store_errors_total") > 0
    assert server.metric('isomorph_requests_total{code="200"}') == 5
    server.process.terminate()
    assert server.process.wait(timeout=20) == 0


def test_a_wrong_setting_is_told_before_anything_is_loaded(start: Start) -> None:
    server = start(LATENT_STORE_URL="redis://h", LATENT_BLOCK=100)
    assert server.process.wait(timeout=60) == 1
    assert (
        server.log.strip()
        .splitlines()[-1]
        .startswith("isomorph: ISOMORPH_LATENT_BLOCK is '100'; blocks must divide 256 tokens")
    )


def test_the_trained_folder_is_transformers_model_with_the_same_logits(model: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import DeepseekV3ForCausalLM

    from model_code.common.cache import KVCache
    from model_code.common.model_folder import load_folder
    from model_code.common.span import Span

    tokens = torch.tensor([Tokenizer.from_file(str(model / "tokenizer.json")).encode("def f(").ids])
    theirs = DeepseekV3ForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ours = load_folder(model, context=64, dtype=torch.float32).decoder
    cache = KVCache(ours.architecture, slots=1, context=64, dtype=torch.float32)
    with torch.inference_mode():
        span = Span(0, torch.tensor([0]), tokens.shape[1])
        found = ours.logits(ours(tokens, cache, span))
        torch.testing.assert_close(found, theirs(tokens).logits, rtol=1e-4, atol=1e-4)
    assert read(model).parameters == sum(p.numel() for p in theirs.parameters())


def test_training_is_the_same_each_time_and_learns(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    tokens = torch.tensor(train_tokenizer(TEXT[:60_000], 400).encode(TEXT[:60_000]).ids)
    losses = [train_tiny.train(config, tokens, steps=n, seed=1)[1] for n in (8, 8, 1)]
    assert losses[0] == losses[1]
    assert losses[0] < losses[2] - 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "no.txt"], "--text no.txt cannot be read as UTF-8: "),
        (["--text", "short.txt"], "short.txt has 5 characters; allowed are 50,000 and more"),
        (["--steps", "0"], "--steps is 0; allowed are whole numbers from 1"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("short")
    config = str(ROOT / "config/models/tiny-deepseek.json")
    assert train_tiny.main(["--config", config, "--out", "out", *arguments]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not Path("out").exists()
