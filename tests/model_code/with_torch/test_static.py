"""The static form: equal to the eager decoder, exported, and driven by the batch."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model_code.common.cache import KVCache
from model_code.common.decoder import Decoder
from model_code.common.engine import Generation
from model_code.common.engine.native import NativeEngine
from model_code.common.errors import SettingsError, WeightsError
from model_code.common.layers import FeedForward, Router
from model_code.common.model_folder import load_folder
from model_code.common.span import Span
from model_code.moe.model import Experts
from model_code.moe.static import compile as compiling
from model_code.moe.static import neuron
from model_code.moe.static.decoder import Bucket, StaticDecoder, buckets_for
from model_code.moe.static.experts import StaticExperts
from model_code.moe.static.graphs import GraphDecoder, load_graphs
from tests.model_code.with_torch.mixture import CONFIG, random_decoder, write_folder

pytestmark = pytest.mark.torch
CONTEXT = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("static") / "mixture")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return random_decoder(context=CONTEXT)


@pytest.mark.parametrize("tokens", [1, 2, 3, 9])
@pytest.mark.parametrize("gptoss", [False, True])
def test_both_forms_of_experts_equal_the_eager_one(tokens: int, gptoss: bool) -> None:
    """With gpt-oss' biases and clamped gates, too."""
    more: dict[str, Any] = {"expert_bias": True, "clamp": 7.0, "slope": 1.702} if gptoss else {}
    part = FeedForward(
        width=12, experts=6, active=2, router=Router(scoring="softmax", normalize=True), **more
    )
    torch.manual_seed(tokens)
    eager = Experts(16, part, torch.float32).requires_grad_(False)
    for parameter in eager.parameters():
        parameter.normal_()
    x, weights = torch.randn(tokens, 16), torch.rand(tokens, 2)
    chosen = torch.stack([torch.randperm(6)[:2] for _ in range(tokens)])
    expected = eager(x, chosen, weights)
    for pretended in (1, 1000):
        static = StaticExperts(eager, pretended)
        assert static.gathers == (pretended == 1)
        torch.testing.assert_close(static(x, chosen, weights), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_chunk_then_tokens_equal_the_eager_decoder(decoder: Decoder) -> None:
    tokens = torch.randint(CONFIG["vocab_size"], (1, 12))
    kept = KVCache(decoder.architecture, slots=1, context=CONTEXT, dtype=torch.float32)
    chunk = StaticDecoder(decoder, Bucket(1, 16, CONTEXT))
    one = StaticDecoder(decoder, Bucket(1, 1, CONTEXT))
    padded = torch.nn.functional.pad(tokens[:, :10], (0, 6), value=7)
    found, *stores = chunk(padded, torch.tensor([0]), torch.tensor([10]), *chunk.empty_stores())
    states = decoder(tokens[:, :10], kept, Span(0, torch.tensor([0]), 10))
    torch.testing.assert_close(found, decoder.logits(states[:, -1]), rtol=1e-4, atol=1e-5)
    for at in (10, 11):
        given = tokens[:, at : at + 1]
        found, *stores = one(given, torch.tensor([at]), torch.tensor([1]), *stores)
        states = decoder(given, kept, Span(0, torch.tensor([at]), 1))
        torch.testing.assert_close(found, decoder.logits(states[:, -1]), rtol=1e-4, atol=1e-5)


def test_export_has_no_shape_that_depends_on_the_data(decoder: Decoder) -> None:
    for bucket in (Bucket(2, 1, CONTEXT), Bucket(1, 8, CONTEXT)):
        static = StaticDecoder(decoder, bucket).eval()
        exported = torch.export.export(static, static.example(), strict=False)
        assert not exported.range_constraints  # no symbol: neither of inputs nor of data
        shapes = [
            size for node in exported.graph.nodes for value in [node.meta.get("val")]
            if isinstance(value, torch.Tensor) for size in value.shape
        ]  # fmt: skip
        assert shapes
        assert all(isinstance(size, int) for size in shapes)


def test_no_weight_is_copied(decoder: Decoder) -> None:
    static = StaticDecoder(decoder, Bucket(1, 1, CONTEXT))
    assert {p.data_ptr() for p in static.parameters()} == {
        p.data_ptr() for p in decoder.parameters()
    }
    assert isinstance(decoder.layers[1].feed_forward.experts, Experts)  # the eager one is as it was


def test_where_there_is_no_neuron_it_says_what_was_done_and_what_was_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(folder), "--slots", "2", "--context", str(CONTEXT), "--dtype", "float32"]
    assert compiling.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "no Neuron device here (/dev/neuron0): 2 graphs (s2-t1-c32, s1-t32-c32) exported and within"
    )
    assert said.endswith("nothing was compiled for Inferentia, and nothing ran on it\n")
    assert not (folder / "neuron").exists()


def test_a_graph_that_differs_from_the_eager_decoder_is_not_passed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_check", lambda *_: 0.5)
    with pytest.raises(SettingsError, match=r"differ by 5.0e-01 of the largest logit; allowed is"):
        compiling.compile_model(folder, slots=1, context=CONTEXT, dtype="float32")


def test_a_model_larger_than_a_core_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuron, "CORE_BYTES", 1 << 10)
    with pytest.raises(SettingsError, match="graphs are not divided among cores here: take fewer"):
        compiling.compile_model(folder, slots=1, context=CONTEXT, dtype="float32")


def test_a_device_without_its_compiler_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuron, "DEVICE", tmp_path)
    with pytest.raises(SettingsError, match="is there and torch_neuronx is not installed"):
        neuron.present()


@pytest.mark.parametrize(
    ("config", "bucket", "message"),
    [
        ({}, Bucket(1, 40, 32), "does not fit a decoder for 32"),
        ({}, Bucket(0, 1, 32), "a graph for 0 slots"),
        ({}, Bucket(1, 1, 64), "tokens <= context <= that"),
    ],
)
def test_a_bucket_that_does_not_fit_is_refused(
    decoder: Decoder, config: dict[str, Any], bucket: Bucket, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        StaticDecoder(decoder, bucket)


def test_experts_out_of_a_cache_have_no_static_form(folder: Path) -> None:
    from functools import partial

    from model_code.common.architecture import read
    from model_code.moe.experts.cache import ExpertCache
    from model_code.moe.experts.index import read_index
    from model_code.moe.experts.metrics import ExpertMetrics
    from model_code.moe.experts.module import install
    from model_code.moe.experts.source import DiskSource

    index = read_index(folder, read(folder))
    cache = ExpertCache(index, DiskSource(folder, index), ExpertMetrics(), budget_bytes=1 << 20)
    model = load_folder(
        folder, context=CONTEXT, dtype=torch.float32, prepare=partial(install, cache=cache)
    )
    with pytest.raises(SettingsError, match="come out of a cache; load all of them to compile"):
        StaticDecoder(model.decoder, Bucket(1, 1, CONTEXT))


def stored(folder: Path, out: Path, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `isomorph compile moe` stores graphs, with a compiler that is none."""

    def compile_graph(module: Any, example: Any, path: Path, work: Path) -> None:
        path.write_text(f"{module.bucket.name} {len(example)}")

    monkeypatch.setattr(neuron, "compile_graph", compile_graph)
    return compiling._store(folder, out, decoder, buckets_for(2, CONTEXT))


def test_a_server_on_graphs_says_what_the_eager_one_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests at once, prompts of one and of several tokens, on the static modules."""
    model = load_folder(folder, context=CONTEXT, dtype=torch.float32)
    out = stored(folder, tmp_path / "neuron", model.decoder, monkeypatch)

    def load(path: Path) -> StaticDecoder:
        name = path.read_text().split()[0]
        return StaticDecoder(model.decoder, next(b for b in buckets_for(2, 32) if b.name == name))

    graphs, dtype = load_graphs(out, folder / "config.json", load)
    assert dtype == torch.float32
    on_graphs = GraphDecoder(model.decoder.architecture, graphs, dtype)
    found = []
    for each in (model.decoder, on_graphs):
        engine = NativeEngine(each, model.tokenizer, None, slots=2, context=CONTEXT)
        found.append(asyncio.run(_texts(engine, ["x", "import os, sys", "def f("])))
        engine.close()
    assert found[0] == found[1]
    assert not engine.has_experts


async def _texts(engine: NativeEngine, prompts: list[str]) -> list[str]:
    async def one(prompt: str) -> str:
        request = Generation(prompt=prompt, max_tokens=6, temperature=0)
        return "".join([piece.text async for piece in engine.generate(request)])

    return list(await asyncio.gather(*map(one, prompts)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "plan.json").unlink(), "is missing or damaged; isomorph compile moe"),
        (lambda out: (out / "plan.json").write_text("{}"), "is missing or damaged"),
        (lambda out: (out / "s2-t1-c32.pt").write_text("x"), r"plan.json says"),
        (lambda out: (out / "s2-t1-c32.pt").unlink(), "names 's2-t1-c32.pt', which is not there"),
    ],
)
def test_graphs_that_are_damaged_are_refused(
    folder: Path, decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any,
    message: str,
) -> None:  # fmt: skip
    out = stored(folder, tmp_path / "neuron", decoder, monkeypatch)
    change(out)
    with pytest.raises(WeightsError, match=message):
        load_graphs(out, folder / "config.json", lambda _: decoder)


def test_graphs_of_another_model_are_refused(
    folder: Path, decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stored(folder, tmp_path / "neuron", decoder, monkeypatch)
    other = tmp_path / "config.json"
    other.write_text(json.dumps(CONFIG | {"rope_theta": 5}))
    with pytest.raises(WeightsError, match="was compiled for another model than"):
        load_graphs(out, other, lambda _: decoder)
