"""Two servers of a model that was trained here, and the store between them: as nodes run them."""

import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_code.common.architecture import read
from model_code.common.text import text_of_python, train_tokenizer
from model_code.mla import train_tiny
from tests.model_code.conftest import ROOT, ServerProcess, free_port
from tests.model_code.mla.valkey import Front, Valkey, make_certificate, wait_until
from tests.model_code.with_torch.conftest import Start

pytestmark = pytest.mark.torch

TEXT = text_of_python()


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    yield server
    server.kill()


def ask(server: ServerProcess, prompt: str) -> tuple[str, int]:
    answer = server.complete(prompt, temperature=0, max_tokens=8)
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["text"], cached


@pytest.mark.parametrize("dtype", ["auto", pytest.param("fp8", marks=pytest.mark.slow)])
def test_a_prompt_read_by_one_server_is_a_hit_on_the_other_through_tls(
    start: Start, valkey: Valkey, tmp_path: Path, dtype: str
) -> None:
    valkey.admin("FLUSHALL")
    certificate, key = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    front = Front(valkey.address, tls=tls)
    url = f"rediss://127.0.0.1:{front.address.port}"
    shared: dict[str, Any] = {
        "LATENT_STORE_URL": url, "LATENT_STORE_CA": certificate, "LATENT_DTYPE": dtype,
    }  # fmt: skip
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
    row = 4 * (64 + 16) if dtype == "auto" else 64 + 1 + 2 * 16  # of tiny-deepseek, in float32
    assert valkey.admin("STRLEN", valkey.admin("KEYS", "isomorph:*")[0].decode()) == (
        64 + 2 * 64 * row
    )
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


def test_the_trained_folder_is_transformers_model_with_the_same_logits(latent_model: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import DeepseekV3ForCausalLM

    from model_code.common.cache import KVCache
    from model_code.common.model_folder import load_folder
    from model_code.common.span import Span

    tokens = torch.tensor(
        [Tokenizer.from_file(str(latent_model / "tokenizer.json")).encode("def f(").ids]
    )
    theirs = DeepseekV3ForCausalLM.from_pretrained(latent_model, dtype=torch.float32).eval()
    ours = load_folder(latent_model, context=64, dtype=torch.float32).decoder
    cache = KVCache(ours.architecture, slots=1, context=64, dtype=torch.float32)
    with torch.inference_mode():
        span = Span(0, torch.tensor([0]), tokens.shape[1])
        found = ours.logits(ours(tokens, cache, span))
        torch.testing.assert_close(found, theirs(tokens).logits, rtol=1e-4, atol=1e-4)
    assert read(latent_model).parameters == sum(p.numel() for p in theirs.parameters())


def test_training_is_the_same_each_time_and_learns(latent_model: Path) -> None:
    config = json.loads((latent_model / "config.json").read_text())
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
