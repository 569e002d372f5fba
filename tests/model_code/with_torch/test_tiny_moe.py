"""The sample: a small mixture that is trained here, divided, and measured for its pools."""

import json
from pathlib import Path

import pytest
import torch

from model_code.common.architecture import parse, read
from model_code.common.decoder import Decoder
from model_code.common.errors import UserError
from model_code.moe import train_tiny
from model_code.moe.experts.index import read_index
from model_code.moe.route import POOLS_FILE, PoolRouter
from model_code.moe.route import measure as measure_module
from model_code.moe.route.measure import Pool, measure
from model_code.moe.train_tiny import Balance
from tests.model_code.conftest import ROOT
from tests.model_code.with_torch.mixture import CONFIG, TEXT, random_decoder, write_folder

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes, from a smaller config, of less text, in fewer steps."""
    home = tmp_path_factory.mktemp("sample")
    (home / "small.json").write_text(json.dumps(CONFIG))
    out = home / "tiny-moe"
    code = train_tiny.main(
        ["--config", str(home / "small.json"), "--out", str(out), "--steps", "12",
         "--characters", "40000"]
    )  # fmt: skip
    assert code == 0
    return out


def test_the_sample_is_divided_and_has_a_router_of_pools(sample: Path) -> None:
    index = read_index(sample, read(sample))
    assert index.checked
    assert index.count == 2 * CONFIG["n_routed_experts"]
    router = PoolRouter.read(sample / POOLS_FILE)
    assert router.pools == ("prose", "code")
    assert router.pool("def f(self, x):\n        return self.x[x]\n" * 9) == "code"
    assert router.measured["windows"] >= 8
    assert [path.name for path in sample.parent.iterdir()].count("tiny-moe") == 1
    assert "Loss on text that it had not seen" in (sample / "README.md").read_text()


def test_transformers_loads_it_with_the_same_logits(sample: Path) -> None:
    from transformers import DeepseekV3ForCausalLM

    from model_code.common.cache import KVCache
    from model_code.common.model_folder import load_folder
    from model_code.common.span import Span

    theirs = DeepseekV3ForCausalLM.from_pretrained(sample, dtype=torch.float32).eval()
    ours = load_folder(sample, context=64, dtype=torch.float32).decoder
    tokens = torch.arange(20)[None]
    cache = KVCache(ours.architecture, slots=1, context=64, dtype=torch.float32)
    with torch.inference_mode():
        found = ours.logits(ours(tokens, cache, Span(0, torch.tensor([0]), 20)))
        torch.testing.assert_close(found, theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def test_the_config_of_the_sample_has_16_experts_and_a_few_megabytes() -> None:
    architecture = parse(json.loads((ROOT / "config/models/tiny-moe.json").read_text()))
    parts = [layer.feed_forward for layer in architecture.layers]
    assert [part.experts for part in parts] == [0, 16, 16, 16]
    assert {part.active for part in parts[1:]} == {4}
    assert architecture.parameters < 5_000_000


def test_corrections_move_against_the_load() -> None:
    decoder = random_decoder()
    balance = Balance(decoder)
    mixture = decoder.layers[1].feed_forward
    assert mixture.watch is not None
    mixture.watch(torch.tensor([[0, 1], [0, 2], [0, 1], [0, 3]]))
    balance()
    signs = mixture.router.correction.sign().tolist()
    assert signs == [-1, -1, 0, 0, 1, 1, 1, 1]
    assert not balance.loads[0].any()


def test_a_router_without_a_correction_cannot_be_balanced() -> None:
    config = {
        "model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 48, "head_dim": 16,
        "moe_intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 320, "num_experts": 4, "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-6, "norm_topk_prob": True, "max_position_embeddings": 128,
    }  # fmt: skip
    decoder = Decoder(parse(config), context=16, dtype=torch.float32)
    with pytest.raises(UserError, match="have no correction to balance them with; allowed are"):
        Balance(decoder)


def test_steps_below_one_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "config/models/tiny-moe.json")
    out = tmp_path / "out"
    assert train_tiny.main(["--config", config, "--out", str(out), "--steps", "0"]) == 1
    assert capsys.readouterr().err == (
        "train_tiny: --steps is 0; allowed are whole numbers from 1\n"
    )


def test_a_router_tells_texts_apart_whose_experts_differ(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mixture")
    said: list[str] = []
    numbers = " ".join(str(number) for number in range(9_000))
    router = measure(folder, [Pool("words", TEXT[:40_000]), Pool("numbers", numbers)], said.append)
    assert router.pool(TEXT[50_000:51_000]) == "words"
    assert router.pool("77 78 79 80 81 82 83") == "numbers"
    assert router.measured["agrees_with_the_text"] > 0.9
    assert router.measured["agrees_with_the_model"] > 0.6  # of random weights, which see little
    assert router.measured["visits_of_the_warm_half"] > router.measured["visits_of_a_common_half"]
    assert said[0].startswith("router of pools words, numbers: of ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--text names 0 pools; allowed are two and more, with different names"),
        (["--text", "a"], "--text 'a' is not POOL=FILE, such as code=sources.txt"),
        (["--text", "a=no.txt"], "--text no.txt cannot be read as UTF-8: "),
        (["--text", "a=x.txt", "--text", "a=x.txt"], "--text names 2 pools; allowed are two"),
        (["--text", "a=x.txt", "--text", "b=x.txt"], "a: gives 0 windows of 128 tokens; allowed"),
    ],
)
def test_mistakes_of_measuring_are_told_in_one_line(
    sample: Path, arguments: list[str], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("short")
    assert measure_module.main([str(sample), *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("measure: ")
    assert message in said
    assert said.count("\n") == 1


def test_a_dense_model_has_no_use_of_experts_to_measure(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "dense", CONFIG | {"first_k_dense_replace": 3})
    with pytest.raises(UserError, match="the model has no routed experts"):
        measure(folder, [Pool("a", TEXT), Pool("b", TEXT)], print)
