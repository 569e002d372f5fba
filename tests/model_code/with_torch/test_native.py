"""Our decoder as an engine, on real weights."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_code.common.engine import Generation, Piece, PromptTooLongError
from model_code.common.engine.native import NativeEngine, choose_dtype
from model_code.common.errors import SettingsError
from tests.model_code.conftest import ServerProcess

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.fixture(scope="module")
def engine(weights: Path) -> Iterator[NativeEngine]:
    engine = NativeEngine.load(weights, slots=3, context=256, dtype="float32")
    yield engine
    engine.close()


async def collect(engine: NativeEngine, prompt: str, **fields: Any) -> list[Piece]:
    request = Generation(prompt=prompt, **{"temperature": 0.0, "max_tokens": 12, **fields})
    return [piece async for piece in engine.generate(request)]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_it_knows_the_capital_of_france(engine: NativeEngine) -> None:
    pieces = asyncio.run(collect(engine, "The capital of France is"))
    assert "Paris" in text(pieces)
    assert (pieces[-1].prompt_tokens, pieces[-1].completion_tokens) == (5, 12)
    assert [piece.finish for piece in pieces] == [None] * 11 + ["length"]
    assert engine.kv_bytes_per_token == 30 * 2 * 3 * 64 * 4


def test_an_answer_that_ends_by_itself_says_stop(engine: NativeEngine) -> None:
    last = asyncio.run(collect(engine, "The capital of France is", max_tokens=None))[-1]
    assert (last.finish, last.text) == ("stop", "")


def test_more_requests_than_slots_say_what_each_says_alone(engine: NativeEngine) -> None:
    prompts = ["The capital of France is", "1 2 3 4 5", "Once upon a time " * 8, "Hi", "def f("]

    async def work() -> None:
        alone = [text(await collect(engine, prompt)) for prompt in prompts]
        together = await asyncio.gather(*(collect(engine, prompt) for prompt in prompts))
        assert [text(pieces) for pieces in together] == alone

    asyncio.run(work())


def test_a_cancelled_request_frees_its_slot(engine: NativeEngine) -> None:
    async def work() -> None:
        for _ in range(7):  # more than twice as many as there are slots
            pieces = engine.generate(Generation(prompt="Once", temperature=0.0, max_tokens=200))
            await anext(pieces)
            await pieces.aclose()
        assert "Paris" in text(await collect(engine, "The capital of France is"))

    asyncio.run(work())


def test_fails_when_the_prompt_does_not_fit(engine: NativeEngine) -> None:
    with pytest.raises(PromptTooLongError, match=r"has 301 tokens; this server takes at most 255"):
        asyncio.run(collect(engine, "hello " * 300))


def test_a_step_that_fails_is_told_to_its_requests_and_the_next_ones_work(
    engine: NativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise MemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine._batch, "step", fail)
        with pytest.raises(MemoryError, match="out of memory"):
            asyncio.run(collect(engine, "Hi"))
    assert "Paris" in text(asyncio.run(collect(engine, "The capital of France is")))


def test_bfloat16_answers_too(weights: Path) -> None:
    engine = NativeEngine.load(weights, slots=1, context=64, dtype="bfloat16")
    assert "Paris" in text(asyncio.run(collect(engine, "The capital of France is", max_tokens=4)))
    assert engine.kv_bytes_per_token == 30 * 2 * 3 * 64 * 2
    engine.close()


def test_fails_when_the_dtype_is_unknown() -> None:
    assert choose_dtype("auto") in (torch.float32, torch.bfloat16)
    with pytest.raises(SettingsError, match="ISOMORPH_DTYPE is 'fp8'; allowed: auto, float32"):
        choose_dtype("fp8")


def test_the_server_serves_with_it_and_both_engines_render_the_same_chat(
    start_server: Callable[..., ServerProcess], llama_server: ServerProcess
) -> None:
    server = start_server(ENGINE="native", SLOTS=2, CONTEXT=256)
    server.wait_until_ready(120)
    answer = server.complete("The capital of France is", temperature=0, max_tokens=4)
    assert "Paris" in answer["choices"][0]["text"]
    chat = {"messages": [{"role": "user", "content": "Where is Paris?"}], "max_tokens": 1}
    counts = {
        each.post("/v1/chat/completions", **chat).json()["usage"]["prompt_tokens"]
        for each in (server, llama_server)
    }
    assert len(counts) == 1
    server.process.terminate()
    assert server.process.wait(timeout=20) == 0
