"""llama.cpp as an engine, on real weights."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_code.common.engine import Generation, Piece, PromptTooLongError, load_engine
from model_code.common.engine.llama_cpp import LlamaCppEngine
from model_code.common.errors import SettingsError, WeightsError


@pytest.fixture(scope="module")
def engine(weights: Path) -> Iterator[LlamaCppEngine]:
    engine = LlamaCppEngine(weights, slots=2, context=256)
    yield engine
    engine.close()


async def collect(engine: LlamaCppEngine, prompt: str, **fields: object) -> list[Piece]:
    request = Generation(prompt=prompt, **{"temperature": 0.0, "max_tokens": 16, **fields})  # type: ignore[arg-type]
    return [piece async for piece in engine.generate(request)]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_it_knows_the_capital_of_france(engine: LlamaCppEngine) -> None:
    pieces = asyncio.run(collect(engine, "The capital of France is"))
    assert "Paris" in text(pieces)
    assert (pieces[-1].prompt_tokens, pieces[-1].completion_tokens) == (5, 16)
    assert [piece.finish for piece in pieces[-2:]] == [None, "length"]


def test_it_counts_what_a_token_costs_in_the_cache(engine: LlamaCppEngine) -> None:
    assert engine.kv_bytes_per_token == 30 * 2 * 3 * 64 * 2


def test_the_same_seed_gives_the_same_text_and_another_one_another(engine: LlamaCppEngine) -> None:
    once, again, other = (
        text(asyncio.run(collect(engine, "Once upon a time", temperature=1.0, seed=seed)))
        for seed in (7, 7, 8)
    )
    assert once == again != other


def test_a_small_nucleus_is_greedy(engine: LlamaCppEngine) -> None:
    greedy = text(asyncio.run(collect(engine, "One, two, three,")))
    assert greedy == text(
        asyncio.run(collect(engine, "One, two, three,", temperature=1.0, top_p=0.001))
    )


def test_without_a_limit_the_context_is_the_limit(engine: LlamaCppEngine) -> None:
    pieces = asyncio.run(collect(engine, "a b c d e f g " * 30, max_tokens=None))
    last = pieces[-1]
    assert last.finish in ("length", "stop")
    assert last.prompt_tokens + last.completion_tokens <= engine.context


def test_fails_when_the_prompt_does_not_fit_and_says_both_numbers(engine: LlamaCppEngine) -> None:
    with pytest.raises(
        PromptTooLongError, match=r"the prompt has 301 tokens; this server takes at most 255"
    ):
        asyncio.run(collect(engine, "hello " * 300))


def test_a_cancelled_request_frees_its_slot(engine: LlamaCppEngine) -> None:
    async def work() -> None:
        for _ in range(6):  # three times as many as there are slots
            pieces = engine.generate(Generation(prompt="Once", temperature=0.0, max_tokens=200))
            await anext(pieces)
            await pieces.aclose()
        assert "Paris" in text(await collect(engine, "The capital of France is"))

    asyncio.run(work())


def test_requests_side_by_side_do_not_mix(engine: LlamaCppEngine) -> None:
    async def work() -> None:
        counting = "1 2 3 4 5 6 7 8 9"
        both = await asyncio.gather(
            collect(engine, "The capital of France is"), collect(engine, counting)
        )
        assert "Paris" in text(both[0])
        assert "10" in text(both[1])

    asyncio.run(work())


def test_fails_when_the_context_is_longer_than_the_model_s(weights: Path) -> None:
    with pytest.raises(SettingsError, match="ISOMORPH_CONTEXT is 9000; the model was made for"):
        LlamaCppEngine(weights, slots=1, context=9000)


def test_fails_when_the_file_is_truncated_and_names_it(weights: Path, tmp_path: Path) -> None:
    [whole] = weights.glob("*.gguf")
    shutil.copy(whole, tmp_path / "cut.gguf")
    with (tmp_path / "cut.gguf").open("ab") as file:
        file.truncate(50_000_000)
    with pytest.raises(WeightsError, match=r"cut.gguf: truncated: .* the file has 50,000,000"):
        LlamaCppEngine(tmp_path, slots=1, context=256)


def test_fails_when_llama_cpp_cannot_load_what_the_header_allows(
    weights: Path, tmp_path: Path
) -> None:
    [whole] = weights.glob("*.gguf")
    content = whole.read_bytes().replace(b"blk.7.attn_q", b"blk.7.attn_x", 1)
    (tmp_path / "odd.gguf").write_bytes(content)
    with pytest.raises(WeightsError, match=r"odd.gguf: llama.cpp cannot load it"):
        LlamaCppEngine(tmp_path, slots=1, context=256)


def test_fails_when_the_engine_is_unknown(weights: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"ISOMORPH_ENGINE is 'tgi'; allowed: llama.cpp, native, vllm"
    ):
        load_engine("tgi", weights, slots=1, context=256, dtype="auto")
