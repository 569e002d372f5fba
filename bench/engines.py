"""Each engine with each kind of weights on the same model: which one a target should take.

`isomorph bench common --write docs/engines.md` renews the table there.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gguf import GGMLQuantizationType

from bench import smollm2
from bench.gguf_files import requantised
from bench.row import Row, interleaved
from isomorph.errors import UserError
from model_code.common.engine import Engine, Generation, load_engine
from model_code.common.gguf_model import find_gguf

_SLOTS, _CONTEXT = 8, 256
_REQUESTS, _SHORT, _LONG = 32, 4, 16  # tokens of each of many requests, and of a single one
BEGIN, END = "<!-- engines:begin -->", "<!-- engines:end -->"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a target can run: an engine, and the kind of its weights."""

    engine: str
    weights: str
    dtype: str = "auto"
    quantization: str = "none"

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"{self.engine}, {self.weights}"


CHOICES = (
    Choice(engine="llama.cpp", weights="Q4_1"),
    Choice(engine="llama.cpp", weights="Q8_0"),
    Choice(engine="native", weights="float32", dtype="float32"),
    Choice(engine="native", weights="bfloat16", dtype="bfloat16"),
    Choice(engine="native", weights="int8", dtype="float32", quantization="int8"),
    Choice(engine="native", weights="int4", dtype="float32", quantization="int4"),
)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Tokens a second of one choice: of a single request, and of many at once together."""

    choice: Choice
    single: float
    many: float


@cache
def measure() -> list[Speed]:
    """Run all choices on SmolLM2 in turn, in one process."""
    with _engines() as engines:
        names = [choice.name for choice in engines]
        loaded = dict(zip(names, engines.values(), strict=True))
        single = interleaved(_runs(loaded, 1, _LONG), rounds=3)
        many = interleaved(_runs(loaded, _REQUESTS, _SHORT), rounds=1, warmups=0)
    return [
        Speed(
            choice=choice, single=_LONG / single[choice.name],
            many=_REQUESTS * _SHORT / many[choice.name],
        )
        for choice in CHOICES
    ]  # fmt: skip


def rows(speeds: list[Speed]) -> Iterator[Row]:
    """Our engine in int8 beside llama.cpp in Q8_0: as many bits, the same numbers."""
    ours, theirs = (
        next(each for each in speeds if each.choice.name == name)
        for name in ("native, int8", "llama.cpp, Q8_0")
    )
    for what, found, peer in (
        ("one request", ours.single, theirs.single),
        (f"{_REQUESTS} requests at once on {_SLOTS} slots", ours.many, theirs.many),
    ):
        yield Row(
            name=f"SmolLM2-135M int8, {what}", ours=f"{found:.1f} tokens/s",
            peer=f"llama.cpp Q8_0: {peer:.1f} tokens/s", ratio=found / peer, target=1.0,
        )  # fmt: skip


def table(speeds: list[Speed]) -> str:
    """Return the Markdown table: the best of each column is bold, and 1.00."""
    best_single = max(speed.single for speed in speeds)
    best_many = max(speed.many for speed in speeds)
    lines = [
        "| Engine, weights | Settings of `gqa` | One request, tokens/s | Of the best "
        f"| {_REQUESTS} requests on {_SLOTS} slots, tokens/s | Of the best |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for speed in sorted(speeds, key=lambda each: -each.many):
        choice = speed.choice
        settings = f"`engine: {choice.engine}`"
        if choice.engine == "native":
            settings = f"{settings}, `dtype: {choice.dtype}`, `quantization: {choice.quantization}`"
        shares = [speed.single / best_single, speed.many / best_many]
        single, many = (f"**{each:.2f}**" if each == 1 else f"{each:.2f}" for each in shares)
        lines.append(
            f"| {choice.name} | {settings} | {speed.single:.1f} | {single} | {speed.many:.1f} "
            f"| {many} |"
        )
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Put a table between the marks of a document.

    Raises:
        UserError: It is not there, or has no such marks.
    """
    document = path.read_text() if path.is_file() else ""
    if BEGIN not in document or END not in document:
        raise UserError(f"{path} is no document with {BEGIN} ... {END} to write the table to")
    head, rest = document.split(BEGIN, 1)
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")


@contextmanager
def _engines() -> Iterator[dict[Choice, Engine]]:
    with ExitStack() as stack:
        files = {
            "Q8_0": stack.enter_context(
                requantised(find_gguf(smollm2.weights()), GGMLQuantizationType.Q8_0)
            ),
        }
        loaded = {}
        for choice in CHOICES:
            engine = load_engine(
                choice.engine, files.get(choice.weights, smollm2.weights()), slots=_SLOTS,
                context=_CONTEXT, dtype=choice.dtype, quantization=choice.quantization,
            )  # fmt: skip
            stack.callback(engine.close)
            loaded[choice] = engine
        yield loaded


def _runs(
    engines: dict[str, Engine], requests: int, tokens: int
) -> dict[str, Callable[[], object]]:
    def run(engine: Engine) -> Callable[[], object]:
        return lambda: asyncio.run(_ask_all(engine, requests, tokens))

    return {name: run(engine) for name, engine in engines.items()}


async def _ask_all(engine: Engine, requests: int, tokens: int) -> None:
    async def ask(number: int) -> None:
        # Counting goes on for all tokens, where prose might end.
        request = Generation(
            prompt=f"{number} {number + 1} {number + 2}", max_tokens=tokens, temperature=0
        )
        found = 0
        async for piece in engine.generate(request):
            found = piece.completion_tokens
        if found != tokens:
            raise RuntimeError(f"{engine.name}: {found} tokens instead of {tokens}")

    await asyncio.gather(*(ask(number) for number in range(requests)))
