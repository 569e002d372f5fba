"""Every family's tiny model beside transformers', on the same random weights, in fp32."""

from typing import Any

import pytest
import torch

from model_code.common.cache import KVCache
from model_code.common.span import Span
from tests.model_code.with_torch.families import (
    CONTEXT,
    FAMILIES,
    logits,
    new_cache,
    pair,
    random_tokens,
    relative,
)

pytestmark = pytest.mark.torch
every_family = pytest.mark.parametrize("name", FAMILIES)


@every_family
@torch.inference_mode()
def test_prefill_and_decode_equal_transformers_up_to_the_last_position(name: str) -> None:
    theirs, ours = pair(name).theirs, pair(name).ours
    tokens = random_tokens(CONTEXT)
    expected = theirs(tokens[None]).logits[0]
    found = logits(ours, tokens, [100, 120, *range(121, CONTEXT)])
    assert relative(found, expected) < 1e-5


@every_family
@torch.inference_mode()
def test_a_padded_batch_says_what_each_sequence_says_alone(name: str) -> None:
    decoder = pair(name).ours
    lengths, more = torch.tensor([21, 3, 12]), torch.tensor([5, 9, 1])
    tokens = random_tokens(3, 40)
    alone = [logits(decoder, tokens[row], []) for row in range(3)]
    cache = new_cache(decoder)
    first = decoder(tokens[:, :21], cache, Span(0, torch.zeros(3, dtype=torch.long), 21, lengths))
    second_tokens = torch.zeros(3, 9, dtype=torch.long)
    for row in range(3):
        at = int(lengths[row])
        second_tokens[row, : more[row]] = tokens[row, at : at + int(more[row])]
    second = decoder(second_tokens, cache, Span(0, lengths, 9, more))
    third_tokens = tokens.gather(1, (lengths + more)[:, None])
    third = decoder(third_tokens, cache, Span(0, lengths + more, 1))
    for row in range(3):
        length, count = int(lengths[row]), int(more[row])
        states = [first[row, :length], second[row, :count], third[row]]
        found = decoder.logits(torch.cat(states))
        assert relative(found, alone[row][: length + count + 1]) < 1e-5


@every_family
def test_parameters_and_buffers_are_those_that_the_architecture_counts(name: str) -> None:
    decoder, architecture = pair(name).ours, pair(name).architecture
    assert sum(p.numel() for p in decoder.parameters()) == architecture.parameters
    assert sum(b.numel() for b in decoder.buffers()) == architecture.buffers


@every_family
def test_cache_bytes_are_those_that_the_architecture_counts(name: str) -> None:
    architecture = pair(name).architecture
    sizes: list[tuple[Any, str]] = [(torch.float32, "fp32"), (torch.bfloat16, "bf16")]
    for dtype, word in sizes:
        for context in (5, CONTEXT):
            cache = KVCache(architecture, slots=3, context=context, dtype=dtype)
            assert cache.nbytes == 3 * architecture.kv_bytes(context, word)
