"""Each engine with each kind of weights on the same model: which one a target should take.

`isomorph bench common --write docs/engines.md` renews the table there.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from gguf import GGMLQuantizationType

from bench import smollm2
from bench.engine_process import EngineProcess, Loaded, running
from bench.gguf_files import requantised
from bench.row import Row, in_turn
from bench.vllm_experts import VLLM
from isomorph import output
from isomorph.errors import UserError
from model_code.common.convert import convert
from model_code.common.gguf_model import find_gguf

_SLOTS, _CONTEXT = 8, 256
_REQUESTS, _SHORT, _LONG = 32, 16, 32  # tokens of each of many requests, and of a single one
# Both of its threads, where it keeps one of two cores free.
_VLLM_ENVIRONMENT = {"ISOMORPH_VLLM_PYTHON": str(VLLM), "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
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
    Choice(engine="vllm", weights="bfloat16", dtype="bfloat16"),
)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Tokens a second of one choice: of a single request, and of many at once together."""

    choice: Choice
    single: float
    many: float


@cache
def measure() -> list[Speed]:
    """Run all choices on SmolLM2 in turn, each in its process, the others asleep."""
    choices = [each for each in CHOICES if each.engine != "vllm" or VLLM.is_file()]
    if len(choices) < len(CHOICES):
        output.say("vllm: not measured, as it is not here; `make vllm` installs it")
    os.environ.update(_VLLM_ENVIRONMENT)
    with _engines(choices) as engines:
        single = _in_turn(engines, 1, _LONG, rounds=5, warmups=1)
        many = _in_turn(engines, _REQUESTS, _SHORT, rounds=3, warmups=0)
    return [
        Speed(
            choice=choice, single=_LONG / single[choice.name],
            many=_REQUESTS * _SHORT / many[choice.name],
        )
        for choice in choices
    ]  # fmt: skip


def _in_turn(
    engines: dict[str, EngineProcess], requests: int, tokens: int, *, rounds: int, warmups: int
) -> dict[str, float]:
    return in_turn(
        {name: partial(each.seconds, requests, tokens) for name, each in engines.items()},
        rounds=rounds, warmups=warmups,
    )  # fmt: skip


# Ours, and the peer that has as many bits.
_PEERS = (
    ("native, int8", "llama.cpp, Q8_0"),
    ("native, bfloat16", "vllm, bfloat16"),
)


def rows(speeds: list[Speed]) -> Iterator[Row]:
    """Our engine beside others with as many bits."""
    named = {each.choice.name: each for each in speeds}
    for name, peer in _PEERS:
        if peer not in named:
            continue
        ours, theirs = named[name], named[peer]
        for what, found, other in (
            ("one request", ours.single, theirs.single),
            (f"{_REQUESTS} requests at once on {_SLOTS} slots", ours.many, theirs.many),
        ):
            yield Row(
                name=f"SmolLM2-135M, {name.removeprefix('native, ')}, {what}",
                ours=f"{found:.1f} tokens/s",
                peer=f"{peer}: {other:.1f} tokens/s", ratio=found / other, target=1.0,
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
        if choice.engine == "vllm":
            settings = "`ISOMORPH_ENGINE=vllm`, not of fleets"
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
def _engines(choices: list[Choice]) -> Iterator[dict[str, EngineProcess]]:
    source = find_gguf(smollm2.weights())
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="engines-")))
        convert(source, scratch / "bfloat16", dtype="bfloat16")
        folders = {
            "Q8_0": stack.enter_context(requantised(source, GGMLQuantizationType.Q8_0)),
            "bfloat16": scratch / "bfloat16",
        }
        loaded = {}
        for choice in choices:
            what = Loaded(
                name=choice.engine, folder=folders.get(choice.weights, source.parent),
                slots=_SLOTS, context=_CONTEXT, dtype=choice.dtype,
                quantization=choice.quantization,
            )  # fmt: skip
            loaded[choice.name] = stack.enter_context(running(what))
        yield loaded
