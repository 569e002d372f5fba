"""One interface for everything that turns a prompt into text, and the engines behind it."""

import os
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from model_code.common.errors import SettingsError
from model_code.common.imports import kept

# OpenMP's threads spin while they wait for each other. On a machine that has anything else to do
# (the server's own Python, for one) that makes an engine several times slower. OpenMP reads it when
# torch or llama.cpp loads it, which is after this package.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ENGINES = ("llama.cpp", "native", "vllm")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What to generate.

    Args:
        max_tokens: Where to stop; None means at the end of the context.
        temperature: 0 takes the likeliest token each time.
        top_k: Chooses among so many; 0 among all.
        min_p: Leaves out what is less likely than this share of the likeliest.
        repetition_penalty: Above 1 makes tokens that were there before less likely.
        seed: The same seed gives the same choice of tokens on one engine.
        experts: Whether the last piece says which experts worked.
    """

    prompt: str
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    experts: bool = False


# Layer -> expert -> how many tokens visited it; only those that were visited.
Visits = Mapping[int, Mapping[int, int]]
Finish = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some more text, never part of a character. The last piece says why it is the last.

    Args:
        cached_tokens: Tokens of the prompt that were not computed again; None where none can be.
        experts: Which experts worked, with the last piece of who asked for it.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish: Finish | None = None
    cached_tokens: int | None = None
    experts: Visits | None = None


class PromptTooLongError(Exception):
    """The prompt does not fit the context, or leaves no room for one token."""

    def __init__(self, prompt_tokens: int, context: int) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens} tokens; this server takes at most {context - 1}, "
            f"one less than its context of {context}"
        )


class UnavailableError(Exception):
    """The engine cannot answer at the moment, for a reason outside of it; a later try may succeed.

    The message goes to clients: it names no addresses and no paths.
    """


class Engine(Protocol):
    """Runs up to `slots` generations at a time, batched together.

    Args:
        window: Tokens that its local layers see; None where every layer sees all.
    """

    name: str
    context: int
    slots: int
    kv_bytes_per_token: int
    window: int | None
    chat_template: str | None

    def generate(self, request: Generation) -> AsyncGenerator[Piece, None]:
        """Yield pieces as they come; closing the generator cancels the work.

        Raises:
            PromptTooLongError: Before the first piece.
        """
        ...

    def close(self) -> None:
        """Stop threads and give memory back. No generation may be running."""
        ...


def load_engine(
    name: str, folder: Path, *, slots: int, context: int, dtype: str, quantization: str = "none"
) -> Engine:
    """Load the weights in `folder` into the engine called `name`.

    The engines import what they need when they are chosen: torch is never loaded for llama.cpp.
    """
    loaders: dict[str, Callable[[], Engine]] = {
        "llama.cpp": lambda: _llama_cpp(folder, slots, context),
        "native": lambda: _native(folder, slots, context, dtype, quantization),
        "vllm": lambda: _vllm(folder, slots, context, dtype, quantization),
    }
    if name not in loaders:
        raise SettingsError(f"ISOMORPH_ENGINE is {name!r}; allowed: {', '.join(ENGINES)}")
    return loaders[name]()


def _llama_cpp(folder: Path, slots: int, context: int) -> Engine:
    from model_code.common.engine.llama_cpp import LlamaCppEngine

    return LlamaCppEngine(folder, slots=slots, context=context)


def _native(folder: Path, slots: int, context: int, dtype: str, quantization: str) -> Engine:
    with kept():
        from model_code.common.engine.native import NativeEngine

    return NativeEngine.load(
        folder, slots=slots, context=context, dtype=dtype, quantization=quantization
    )


def _vllm(folder: Path, slots: int, context: int, dtype: str, quantization: str) -> Engine:
    from model_code.common.engine.vllm import VllmEngine

    return VllmEngine(folder, slots=slots, context=context, dtype=dtype, quantization=quantization)
