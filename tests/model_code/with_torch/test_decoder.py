"""Our decoder beside transformers', on random and on real weights."""

# mypy: disable-error-code="untyped-decorator, no-untyped-call"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from model_code.common import checkpoint, gguf_tensors
from model_code.common.architecture import parse
from model_code.common.attention import KVCache, Span, grouped_attention
from model_code.common.batch import PREFILL_CHUNK, Batch, Sequence
from model_code.common.checkpoint import load_decoder, tensor_names
from model_code.common.decoder import Decoder
from model_code.common.errors import WeightsError
from model_code.common.gguf_header import read_header
from model_code.common.gguf_model import architecture_of, find_gguf
from model_code.common.gguf_tensors import GGUFTensors
from model_code.common.linear import Linear
from model_code.common.sampling import Sampler
from model_code.common.tensor_names import Source
from model_code.common.tokenizer import GGUFTokenizer
from tests.model_code.gguf_file import gguf
from tests.model_code.oracle import GREEDY, PROMPT, transformers_model

pytestmark = pytest.mark.torch
CONTEXT = 96


def tiny(kv_heads: int = 2, **changes: Any) -> tuple[Any, Decoder]:
    """Return transformers' model with random weights, and ours with the same."""
    config = {
        "model_type": "llama", "hidden_size": 48, "intermediate_size": 80, "vocab_size": 101,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": kv_heads,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
        "tie_word_embeddings": False, "initializer_range": 0.3, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    theirs: Any = LlamaForCausalLM(LlamaConfig(**config)).eval()
    with torch.no_grad():  # norms and biases begin as ones and zeros, which would hide a mistake
        for name, parameter in theirs.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.uniform_(0.5, 1.5)
    state = theirs.state_dict()
    ours = load_decoder(
        parse(config), lambda name: state[name], context=CONTEXT, dtype=torch.float32
    )
    return theirs, ours


@torch.inference_mode()
def logits(decoder: Decoder, tokens: list[int], splits: list[int]) -> Any:
    """Return the logits of all tokens, read in chunks that begin at `splits`."""
    cache = KVCache(decoder.architecture, slots=3, context=CONTEXT, dtype=decoder.dtype)
    for layer in cache.layers:
        for store in layer.stores:
            store.fill_(7.0)  # garbage that must never be seen
    ends = [*splits, len(tokens)]
    found = []
    for start, end in zip([0, *splits], ends, strict=True):
        if start < end:
            chunk = torch.tensor([tokens[start:end]])
            span = Span(1, torch.tensor([start]), end - start)
            found.append(decoder.logits(decoder(chunk, cache, span)[0]))
    return torch.cat(found)


def relative(found: Any, expected: Any) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


TOKENS = [(7 * i * i + 3 * i) % 101 for i in range(CONTEXT)]


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True},
     {"head_dim": 16}, {"rope_theta": 100.0}],
    ids=["plain", "tied", "biases", "wide heads", "fast rope"],
)  # fmt: skip
@torch.inference_mode()
def test_logits_equal_transformers_for_mqa_gqa_and_mha(
    kv_heads: int, changes: dict[str, Any]
) -> None:
    theirs, ours = tiny(kv_heads, **changes)
    expected = theirs(torch.tensor([TOKENS])).logits[0]
    assert relative(logits(ours, TOKENS, [64, 65, 66]), expected) < 1e-5


MODEL = tiny()[1]
WHOLE = logits(MODEL, TOKENS, [])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, CONTEXT - 1), max_size=6, unique=True).map(sorted))
def test_any_split_of_a_prompt_gives_the_same_logits(splits: list[int]) -> None:
    assert relative(logits(MODEL, TOKENS, splits), WHOLE) < 1e-5


def test_the_cache_has_the_bytes_that_the_architecture_counts() -> None:
    architecture = MODEL.architecture
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        cache = KVCache(architecture, slots=3, context=50, dtype=dtype)
        assert cache.nbytes == 3 * architecture.kv_bytes(50, name)


def test_the_decoder_has_the_parameters_that_the_architecture_counts() -> None:
    for changes in ({}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}):
        _, ours = tiny(**changes)
        assert sum(p.numel() for p in ours.parameters()) == ours.architecture.parameters


def test_grouped_attention_equals_torch_s_with_heads_repeated() -> None:
    query, keys, values = torch.randn(2, 5, 6, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    mask = torch.rand(2, 5, 9) > 0.4
    mask[..., 0] = True
    for tokens in (1, 5):
        expected = torch.nn.functional.scaled_dot_product_attention(
            query[:, :tokens].transpose(1, 2),
            keys.repeat_interleave(2, 1),
            values.repeat_interleave(2, 1),
            attn_mask=mask[:, None, :tokens],
            scale=0.3,
        ).transpose(1, 2)
        found = grouped_attention(query[:, :tokens], keys, values, mask[:, :tokens], 0.3)
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 3, 4), (40, 4)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_is_torch_s_linear(shape: tuple[int, ...], bias: bool, dtype: Any) -> None:
    ours, theirs = Linear(4, 5, bias=bias, dtype=dtype), torch.nn.Linear(4, 5, bias, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape, dtype=dtype)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)


def run(batch: Batch, sequences: list[Sequence], join: Callable[[int], list[int]]) -> None:
    """Step until all are done; `join` says which sequences come before a step."""
    step = 0
    while any(sequence.finish is None for sequence in sequences):
        for index in join(step):
            batch.add(sequences[index])
        list(batch.step())
        step += 1


def sequence(seed: int, length: int, limit: int) -> Sequence:
    prompt = torch.randint(0, 101, (length,), generator=torch.Generator().manual_seed(seed))
    sampler = Sampler(temperature=0, top_p=1, seed=0)
    return Sequence(prompt=prompt.tolist(), limit=limit, sampler=sampler, ends=set())


def alone(seed: int, length: int, limit: int) -> list[int]:
    single = sequence(seed, length, limit)
    run(Batch(MODEL, slots=1, context=CONTEXT), [single], lambda step: [0][step:])
    return single.generated


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 60), st.integers(1, 12)), min_size=1, max_size=4
    )
)
def test_sequences_that_join_and_leave_a_batch_say_what_they_say_alone(
    given: list[tuple[int, int, int]],
) -> None:
    requests = [(seed, length, limit) for seed, (_, length, limit) in enumerate(given)]
    joins: dict[int, list[int]] = {}
    for index, (step, _, _) in enumerate(given):
        joins.setdefault(step, []).append(index)
    for together in (False, True):
        sequences = [sequence(*request) for request in requests]
        batch = Batch(MODEL, slots=4, context=CONTEXT, together=together)
        run(batch, sequences, lambda step: joins.get(step, []))
        assert [s.generated for s in sequences] == [alone(*request) for request in requests]


class Passes:
    """Counts the tokens of each pass, with padding: an observer that sees no shapes of its own."""

    def __init__(self) -> None:
        self.architecture, self.dtype = MODEL.architecture, MODEL.dtype
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, tokens_BS: Any, cache: KVCache, span: Span) -> Any:  # noqa: N803
        self.shapes.append(tuple(tokens_BS.shape))
        return MODEL(tokens_BS, cache, span)

    def logits(self, states: Any) -> Any:
        return MODEL.logits(states)

    def reading(self, sequences: list[Sequence]) -> None:
        self.seen = len(sequences)


@pytest.mark.parametrize(
    ("lengths", "observed", "shapes"),
    [
        ([5, 6, 7], False, [(3, 7), (3, 1)]),
        ([6, 6, 7], True, [(2, 6), (2, 1), (1, 7), (1, 1)]),  # equally many of each
        ([3, 30], False, [(1, 3), (1, 1), (1, 30), (1, 1)]),  # too much padding
        ([90, 90, 90], False, [(2, 90), (2, 1), (1, 90), (1, 1)]),  # more than a chunk
    ],
)
def test_short_prompts_are_read_together(
    lengths: list[int], observed: bool, shapes: list[tuple[int, int]]
) -> None:
    passes = Passes()
    batch = Batch(passes, slots=3, context=CONTEXT, together=True)
    if observed:
        batch.observer = passes
    sequences = [sequence(seed, length, 2) for seed, length in enumerate(lengths)]
    run(batch, sequences, lambda step: [*range(len(lengths))][: 9 * (step == 0)])
    assert passes.shapes[: len(shapes)] == shapes
    for seed, (length, found) in enumerate(zip(lengths, sequences, strict=True)):
        assert found.generated == alone(seed, length, 2)


def test_one_that_leaves_early_does_not_disturb_the_others() -> None:
    batch = Batch(MODEL, slots=3, context=CONTEXT)
    sequences = [sequence(seed, 10 + seed, 20) for seed in range(3)]
    for each in sequences:
        batch.add(each)
    for _ in range(6):
        list(batch.step())
    batch.remove(sequences[0])
    assert not batch.full
    run(batch, sequences[1:], lambda _: [])
    assert [s.generated for s in sequences[1:]] == [alone(1, 11, 20), alone(2, 12, 20)]


def test_an_answer_ends_where_the_context_ends() -> None:
    generated = alone(0, CONTEXT - 5, 100)
    assert len(generated) == 6  # the last one needs no place in the cache


def test_a_long_prompt_is_read_in_chunks_between_the_others_tokens() -> None:
    theirs, ours = tiny(max_position_embeddings=1024)
    decoder = load_decoder(
        ours.architecture,
        lambda name: theirs.state_dict()[name],
        context=1024,
        dtype=torch.float32,
    )
    batch = Batch(decoder, slots=2, context=1024)
    short, long = sequence(0, 3, 50), sequence(1, 3 * PREFILL_CHUNK, 1)
    batch.add(short)
    list(batch.step())
    batch.add(long)
    for _ in range(3):
        list(batch.step())
    assert len(short.generated) == 4
    assert long.finish == "length"


def broken(**changes: Any) -> Callable[[], Decoder]:
    theirs, ours = tiny()
    state = {**theirs.state_dict(), **changes}
    return lambda: load_decoder(
        ours.architecture, lambda name: state[name], context=8, dtype=torch.float32
    )


def test_fails_when_a_tensor_is_misshapen_and_names_it() -> None:
    with pytest.raises(
        WeightsError, match=r"k_proj.weight has shape \(5, 48\), the model's config says \(16, 48\)"
    ):
        broken(**{"model.layers.0.self_attn.k_proj.weight": torch.zeros(5, 48)})()
    with pytest.raises(
        WeightsError, match=r"model.norm.weight has shape \(49,\), the model's config says \(48,\)"
    ):
        broken(**{"model.norm.weight": torch.zeros(49)})()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fails_when_weights_are_not_finite(value: float) -> None:
    with pytest.raises(WeightsError, match=r"norm.weight holds values that are not finite"):
        broken(**{"model.norm.weight": torch.full((48,), value)})()


@pytest.mark.parametrize("at", [0, 4, 9])
def test_one_number_that_is_not_finite_is_found_in_any_piece(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_CHECKED", 9)  # three rows of three
    place = torch.zeros(10, 6, dtype=torch.bfloat16)[:, ::2]
    given = torch.zeros(10, 3)
    checkpoint.fill(Source("w", place), given)
    given[at, 2] = torch.nan
    with pytest.raises(WeightsError, match="w holds values that are not finite"):
        checkpoint.fill(Source("w", place), given)


def test_fails_when_the_context_needs_rope_that_changes_on_the_way() -> None:
    config = {
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "vocab_size": 9,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
    }  # fmt: skip
    Decoder(parse(config), context=8, dtype=torch.float32)
    with pytest.raises(
        WeightsError, match=r"llama: a context of 9 needs dynamic RoPE, .* allowed are up to 8"
    ):
        Decoder(parse(config), context=9, dtype=torch.float32)


@pytest.fixture(scope="module")
def real(weights: Path) -> tuple[Any, Decoder]:
    """SmolLM2 as transformers reads it from the GGUF file, and as we do."""
    path = find_gguf(weights)
    theirs = transformers_model(path)
    header = read_header(path)
    architecture = architecture_of(header)
    ours = load_decoder(
        architecture, GGUFTensors(header, architecture), context=512, dtype=torch.float32
    )
    return theirs, ours


def greedy_text(decoder: Decoder, prompt: list[int], limit: int) -> list[int]:
    found = Sequence(
        prompt=prompt, limit=limit, sampler=Sampler(temperature=0, top_p=1, seed=0), ends=set()
    )
    context = len(prompt) + limit
    run(Batch(decoder, slots=1, context=context), [found], lambda step: [0][step:])
    return found.generated


@pytest.mark.slow
@torch.inference_mode()
def test_greedy_text_of_200_tokens_and_its_logits_equal_transformers_on_real_weights(
    real: tuple[Any, Decoder], weights: Path
) -> None:
    theirs, ours = real
    tokenizer = GGUFTokenizer(read_header(find_gguf(weights)))
    prompt = tokenizer.encode(PROMPT)
    found = greedy_text(ours, prompt, 200)
    tokens = torch.tensor([prompt + found])
    expected = theirs(tokens).logits[0]
    # Each token is the likeliest one to transformers after those before: the same as its own text.
    assert found == expected[len(prompt) - 1 : -1].argmax(-1).tolist()
    end = next(place for place, token in enumerate(found) if token in tokenizer.ends)
    assert tokenizer.decode(found[:end]) == GREEDY

    cache = KVCache(ours.architecture, slots=1, context=512, dtype=torch.float32)
    states = ours(tokens, cache, Span(0, torch.tensor([0]), tokens.shape[1]))
    assert relative(ours.logits(states[0]), expected) < 1e-5


def llama_file(**tensors: tuple[tuple[int, ...], int, bytes]) -> bytes:
    metadata = {"general.architecture": "llama"} | {
        f"llama.{name}": value
        for name, value in {
            "block_count": 1, "embedding_length": 8, "feed_forward_length": 8, "vocab_size": 9,
            "attention.head_count": 2, "attention.head_count_kv": 1, "context_length": 16,
            "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e4,
        }.items()
    }  # fmt: skip
    return gguf(metadata, {"token_embd.weight": ((9, 8), 0, bytes(288)), **tensors})


def test_fails_when_the_file_lacks_a_tensor_or_has_one_too_many(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(llama_file(**{"rope_freqs.weight": ((4,), 0, bytes(16))}))
    header = read_header(path)
    architecture = architecture_of(header)
    tensors = GGUFTensors(header, architecture)
    with pytest.raises(WeightsError, match=r"m.gguf: output_norm.weight is missing"):
        tensors("model.norm.weight")
    known = tensor_names(Decoder(architecture, context=8, dtype=torch.float32))
    with pytest.raises(WeightsError, match=r"holds rope_freqs.weight, which the native decoder"):
        tensors.check_complete(known)


def test_a_tensor_in_pieces_is_the_tensor_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    query = np.arange(64, dtype=np.float32)
    stored = (8, 8), 0, query.tobytes()
    path.write_bytes(
        llama_file(**{"blk.0.attn_q.weight": stored, "blk.0.attn_output.weight": stored})
    )
    header = read_header(path)
    tensors = GGUFTensors(header, architecture_of(header))
    name = "model.layers.0.self_attn.q_proj.weight"
    (whole,) = tensors.rows(name).pieces
    assert whole.equal(tensors(name))
    assert not whole.flatten().equal(torch.from_numpy(query))  # its rows have changed places
    monkeypatch.setattr(gguf_tensors, "_PIECE", 9)  # a row has 8: a head's rows stay together
    shape, pieces = tensors.rows(name)
    parts = [*pieces]
    assert shape == (8, 8)
    assert [len(part) for part in parts] == [4, 4]
    assert torch.cat(parts).equal(whole)
    name = "model.layers.0.self_attn.o_proj.weight"  # of no heads: row by row
    plain = [*tensors.rows(name).pieces]
    assert {len(part) for part in plain} == {1}
    assert torch.cat(plain).equal(tensors(name))
