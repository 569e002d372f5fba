"""The load that a plan is for, with defaults that the plan prints."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from model_code.common.architecture import BITS, Architecture
from planner.errors import PlanError

LARGEST = 10**15


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of a model. A field that is left out gets a default.

    Args:
        concurrent: Sequences in flight.
        context: Tokens of a sequence, prompt and answer. Left out: 4,096, or what the model holds.
        output: Of them, tokens of the answer. Left out: 256, or half of the context.
        requests_per_s: New sequences a second. Left out: as many as replace those in flight when
            each is answered at `tokens_per_s`.
        tokens_per_s: Least speed of one sequence; 5 is about as fast as people read.
        dtype: Weights, when serving.
        kv_dtype: Cache of keys and values, when serving.
        ttl_s: Seconds that a shared cache keeps a prompt.
        sequence: Tokens of a sequence, when training. Left out: as `context`.
        train_tokens: Tokens to train on.
        train_days: Days that training may take.
        hours: Hours a month that machines are on; 730 is always.
    """

    concurrent: int = 8
    context: int = 0
    output: int = 0
    requests_per_s: float = 0.0
    tokens_per_s: float = 5.0
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    ttl_s: float = 600.0
    sequence: int = 0
    train_tokens: int = 1_000_000_000
    train_days: float = 7.0
    hours: float = 730.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("dtype", "kv_dtype"):
                if value not in BITS:
                    raise PlanError(f"load: {field.name} is {_shown(value)}; allowed is {_DTYPES}")
                continue
            whole = field.type in (int, "int")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                kind = "whole number" if whole else "number"
                raise PlanError(f"load: {field.name} is {_shown(value)}; allowed is a {kind}")
            least = 0 if field.default == 0 else 1e-6
            if not least <= value <= LARGEST or not math.isfinite(value):
                raise PlanError(
                    f"load: {field.name} is {_shown(value)}; allowed is above 0, to {LARGEST:.0e}"
                )
        if self.hours > 744:
            raise PlanError(f"load: hours is {self.hours:g}; a month has at most 744")

    def of(self, architecture: Architecture) -> "Load":
        """Return the load with what was left out filled in for this model."""
        for field in ("context", "sequence"):
            if getattr(self, field) > architecture.context:
                raise PlanError(
                    f"load: {field} is {getattr(self, field):,}; {architecture.name} was made for "
                    f"{architecture.context:,} tokens"
                )
        context = self.context or min(4096, architecture.context)
        output = self.output or max(1, min(256, context // 2))
        if output >= context and context > 1:
            raise PlanError(f"load: output is {output:,}; it must leave a prompt in {context:,}")
        rate = self.requests_per_s or self.concurrent * self.tokens_per_s / output
        return dataclasses.replace(
            self,
            context=context,
            output=output,
            requests_per_s=rate,
            sequence=self.sequence or context,
        )

    @property
    def prompt(self) -> int:
        """Tokens of a prompt."""
        return max(1, self.context - self.output)


_DTYPES = ", ".join(BITS)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."


def parse_load(given: "str | Iterable[str] | Mapping[str, Any] | Load | None") -> Load:
    """Return the load that `concurrent=64,context=8192` or the like asks for."""
    if given is None:
        return Load()
    if isinstance(given, Load):
        return given
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, Mapping):
        given = _pairs(given)
    fields = {field.name: field for field in dataclasses.fields(Load)}
    for name in given:
        if name not in fields:
            raise PlanError(f"load: {_shown(name)} is not known; allowed is {', '.join(fields)}")
    return Load(**given)


def _pairs(items: Iterable[str]) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(Load)}
    pairs: dict[str, Any] = {}
    for item in items:
        if not item.strip():
            continue
        name, found, text = item.partition("=")
        name, text = name.strip(), text.strip().replace("_", "")
        if not found:
            raise PlanError(f"load: {_shown(item)} is not name=value, such as concurrent=64")
        if name in pairs:
            raise PlanError(f"load: {name} is given twice")
        if name in fields and fields[name].type in (int, "int", float, "float"):
            try:
                pairs[name] = int(text) if fields[name].type in (int, "int") else float(text)
            except ValueError as error:
                kind = "whole number" if fields[name].type in (int, "int") else "number"
                raise PlanError(f"load: {name} is {_shown(text)}; allowed is a {kind}") from error
        else:
            pairs[name] = text
    return pairs
