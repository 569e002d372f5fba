"""A decoder's step in one call beside its modules, one of torch's operations after the other."""

# mypy: disable-error-code="untyped-decorator, no-untyped-call"

import copy
import logging
from typing import Any

import pytest
import torch

from model_code.common import kernels
from model_code.common.architecture import parse
from model_code.common.cache import KVCache
from model_code.common.checkpoint import load_decoder
from model_code.common.decoder import Decoder
from model_code.common.kernels import step
from model_code.common.quantize import Quantizable
from model_code.common.span import Span
from model_code.moe.layers import mixtures
from tests.model_code.with_torch.families import (
    CONTEXT,
    FAMILIES,
    VOCABULARY,
    pair,
    random_tokens,
    relative,
)

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("two_threads")]
# Latent attention, and experts with biases, take the modules.
THEIRS = {name for name in FAMILIES if name.startswith("deepseek")} | {"gpt_oss"}
OURS = sorted(set(FAMILIES) - THEIRS)
SMALL: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "vocab_size": VOCABULARY,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip


def decoder(
    dtype: torch.dtype = torch.float32, quantization: str = "none", context: int = 64, **fields: Any
) -> Decoder:
    """Return a small one with random numbers."""
    architecture = parse({**SMALL, **fields})
    made = Decoder(architecture, context=context, dtype=dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    if quantization != "none":
        for module in made.modules():
            for name in [name for name, _ in module.named_parameters(recurse=False)]:
                if isinstance(module, Quantizable):
                    module.quantize(name, quantization)
    return made


def filled(made: Decoder, lengths: list[int], context: int = CONTEXT) -> KVCache:
    """Return a cache in which sequences of these lengths were read, from slot 1 on."""
    cache = KVCache(made.architecture, slots=len(lengths) + 1, context=context, dtype=made.dtype)
    for layer in cache.layers:
        for store in layer.stores:
            store.fill_(7.0)  # garbage that must never be seen
    for row, length in enumerate(lengths):
        tokens = random_tokens(1, length, seed=row)
        made(tokens, cache, Span(row + 1, torch.tensor([0]), length))
    return cache


@torch.inference_mode()
def both(
    made: Decoder, lengths: list[int], *, steps: int = 4, context: int = CONTEXT
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states of some steps in one call each, and those that the modules make."""
    cache = filled(made, lengths, context)
    other = copy.deepcopy(cache)
    found, expected = [], []
    for number in range(steps):
        tokens = random_tokens(len(lengths), 1, seed=100 + number)
        span = Span(1, torch.tensor(lengths) + number, 1)
        states = step.run(made, made.embed(tokens), cache, span)
        assert states is not None
        found.append(states)
        expected.append(made.through_modules(made.embed(tokens), other, span))
    for ours, theirs in zip(cache.layers, other.layers, strict=True):
        for one, two in zip(ours.stores, theirs.stores, strict=True):  # what they leave behind
            kept, their_kept = ((each.float() - 7).flatten() for each in (one, two))
            assert torch.cosine_similarity(kept, their_kept, dim=0) > 0.999
    return torch.stack(found), torch.stack(expected)


@pytest.mark.parametrize("name", OURS)
def test_every_family_equals_its_modules_in_a_batch_and_past_windows(name: str) -> None:
    found, expected = both(pair(name).ours, [3, 40, 11])
    assert relative(found, expected) < 1e-4


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", OURS)
@torch.inference_mode()
def test_a_few_tokens_of_each_equal_their_modules(name: str, padded: bool) -> None:
    made, starts = pair(name).ours, [0, 3, 2]
    cache = KVCache(made.architecture, slots=5, context=CONTEXT, dtype=made.dtype)
    for layer in cache.layers:
        for store in layer.stores:
            store.normal_()
    other, counts = copy.deepcopy(cache), torch.tensor([5, 2, 4])
    span = Span(1, torch.tensor(starts), 5, counts if padded else None)
    if not padded:
        counts = torch.tensor([5, 5, 5])
    tokens = random_tokens(3, 5)
    found = step.run(made, made.embed(tokens), cache, span)
    assert found is not None
    expected = made.through_modules(made.embed(tokens), other, span)
    assert found.isfinite().all()
    for row, count in enumerate(counts.tolist()):
        assert relative(found[row, :count], expected[row, :count]) < 1e-4
    for ours, theirs in zip(cache.layers, other.layers, strict=True):
        for one, two in zip(ours.stores, theirs.stores, strict=True):
            assert (one - two).abs().max() < 1e-4


@torch.inference_mode()
def test_what_goes_round_a_ring_goes_through_the_modules() -> None:
    made = pair("mistral").ours  # its window is 8
    cache = KVCache(made.architecture, slots=1, context=CONTEXT, dtype=made.dtype)
    assert run(made, cache, Span(0, torch.tensor([4]), 4)) is not None
    assert run(made, cache, Span(0, torch.tensor([5]), 4)) is None


@pytest.mark.parametrize("name", sorted(THEIRS))
@torch.inference_mode()
def test_what_it_does_not_compute_goes_through_the_modules(name: str) -> None:
    made = pair(name).ours
    cache = filled(made, [5])
    span = Span(1, torch.tensor([5]), 1)
    assert step.run(made, made.embed(random_tokens(1, 1)), cache, span) is None


@pytest.mark.parametrize("name", ["llama with biases", "gemma3", "olmo2", "qwen3_moe", "glm4_moe"])
@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_caches_and_weights_of_fewer_bits_equal_the_modules(
    name: str, quantization: str, dtype: torch.dtype
) -> None:
    model = pair(name)
    made = load_decoder(
        model.architecture, model.state.__getitem__, context=CONTEXT, dtype=dtype,
        quantization=quantization,
    )  # fmt: skip
    found, expected = both(made, [9, 30])
    # Experts are chosen by scores that bfloat16 rounds: near ties may end in either way.
    likeness = torch.nn.functional.cosine_similarity(found.float(), expected.float(), dim=-1)
    assert likeness.median() > (0.999 if dtype == torch.bfloat16 else 0.99999)
    if dtype == torch.float32:
        assert relative(found, expected) < (2e-2 if quantization == "int8" else 1e-4)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("rows", [1, 2, 4, 7, 16])
def test_any_number_of_rows_equals_the_modules(quantization: str, rows: int) -> None:
    found, expected = both(decoder(quantization=quantization), [3 * row + 1 for row in range(rows)])
    assert relative(found, expected) < (1e-4 if quantization == "none" else 1e-2)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_sequences_are_attended_to_in_runs(kv_heads: int, dtype: torch.dtype) -> None:
    made = decoder(dtype, context=800, num_key_value_heads=kv_heads, head_dim=24)
    found, expected = both(made, [255, 700, 3, 256], context=800)
    assert relative(found, expected) < (1e-4 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_any_number_of_threads_gives_the_same_to_the_last_bit(quantization: str) -> None:
    made, before = decoder(quantization=quantization, context=400), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            cache = KVCache(made.architecture, slots=2, context=400, dtype=made.dtype)
            for layer in cache.layers:
                for store in layer.stores:
                    store.copy_(torch.linspace(-1, 1, store.numel()).view_as(store))
            with torch.inference_mode():
                span = Span(0, torch.tensor([300, 7]), 1)
                states = step.run(made, made.embed(torch.tensor([[1], [2]])), cache, span)
                assert states is not None
                found.append(states)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], each) for each in found[1:])


@torch.inference_mode()
def test_who_watches_experts_is_told_the_same() -> None:
    made = pair("qwen3_moe").ours
    told: dict[str, list[torch.Tensor]] = {"one call": [], "modules": []}
    cache, tokens = filled(made, [4, 9]), random_tokens(2, 1)
    span = Span(1, torch.tensor([4, 9]), 1)
    for name in told:
        for mixture in mixtures(made).values():
            mixture.watch = told[name].append
        if name == "one call":
            step.run(made, made.embed(tokens), copy.deepcopy(cache), span)
        else:
            made.through_modules(made.embed(tokens), cache, span)
    for mixture in mixtures(made).values():
        mixture.watch = None
    assert len(told["one call"]) == len(told["modules"]) == 2
    for ours, theirs in zip(*told.values(), strict=True):
        assert torch.equal(ours.sort().values, theirs.sort().values)


def test_numbers_and_modules_that_were_exchanged_are_found_again() -> None:
    made = decoder()
    both(made, [3])
    part: Any = made.layers[0]
    part.feed_forward.down.weight = torch.nn.Parameter(
        torch.randn_like(part.feed_forward.down.weight), requires_grad=False
    )
    made.layers[1].attention = decoder(num_hidden_layers=3).layers[2].attention
    found, expected = both(made, [3])
    assert relative(found, expected) < 1e-4
    part.feed_forward.gate_up.quantize("weight", "int8")
    found, expected = both(made, [3])
    assert relative(found, expected) < 1e-2
    for parameter in made.parameters():
        parameter.data = parameter.data + 0.1
    found, expected = both(made, [3])
    assert relative(found, expected) < 1e-2
    both(copy.deepcopy(made), [3])


@torch.inference_mode()
def run(made: Decoder, cache: Any, span: Span) -> torch.Tensor | None:
    return step.run(made, made.embed(random_tokens(len(span.starts_B), span.tokens)), cache, span)


class Other(torch.nn.Identity):
    """A module that somebody put in the place of ours."""


def test_the_modules_do_what_the_step_is_not_made_for() -> None:
    made, start = decoder(), torch.tensor([0])
    cache = KVCache(made.architecture, slots=20, context=64, dtype=made.dtype)
    assert run(made, cache, Span(0, start, 1)) is not None
    most = step._most_rows()  # fewer where the processor multiplies bfloat16 by itself
    assert run(made, cache, Span(0, start, most)) is not None
    one_more = torch.zeros(most + 1, dtype=torch.long)
    wide = KVCache(made.architecture, slots=most + 1, context=64, dtype=made.dtype)
    assert run(made, wide, Span(0, one_more, 1)) is None
    assert run(made, cache, Span(0, torch.tensor([64]), 1)) is None  # beyond the context
    assert run(made, cache, Span(20, start, 1)) is None  # no such slot
    pages = KVCache(made.architecture, slots=1, context=64, dtype=made.dtype, page_tokens=8)
    assert run(made, pages, Span(0, start, 1)) is None
    with torch.enable_grad():
        assert step.run(made, made.embed(torch.tensor([[1]])), cache, Span(0, start, 1)) is None
    other = decoder(num_key_value_heads=1)
    assert run(other, cache, Span(0, start, 1)) is None  # another model's cache
    made.layers[1].feed_forward = Other()
    assert run(made, cache, Span(0, start, 1)) is None


def test_it_is_not_used_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "loaded", lambda: None)
    made = decoder()
    cache = KVCache(made.architecture, slots=1, context=64, dtype=made.dtype)
    assert run(made, cache, Span(0, torch.tensor([0]), 1)) is None


def test_a_step_that_disagrees_with_the_modules_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = step._step
    monkeypatch.setattr(step, "_step", lambda *given: right(*given) * 1.01)
    step._trusted.cache_clear()
    try:
        made = decoder()
        cache = KVCache(made.architecture, slots=1, context=64, dtype=made.dtype)
        with caplog.at_level(logging.WARNING):
            assert run(made, cache, Span(0, torch.tensor([0]), 1)) is None
    finally:
        step._trusted.cache_clear()
    assert caplog.messages == [
        "a step in one call does not agree with the modules; they do the work"
    ]
