"""Mistakes in configuration, each told in one line: where, what is wrong, what is allowed."""

from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


class ConfigError(Exception):
    """One or more mistakes that the person who wrote the configuration can mend."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Finding:
    """What is wrong at one key, such as `innovations.gqa.slots`."""

    key: str
    text: str

    def at(self, place: str) -> str:
        """Return the one line that the user sees; `place` is the file or the argument."""
        return f"{place}: {self.key}: {self.text}"


def findings(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[Finding]:
    """Return pydantic's report in our words; `prefix` is put before every key."""
    return [
        Finding(prefix + ".".join(str(part) for part in problem["loc"]), _text(problem, model))
        for problem in error.errors(include_url=False)
    ]


def _text(problem: Any, model: type[BaseModel]) -> str:
    given, context = problem["input"], problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            allowed = sorted(str(name) for name in _fields(model, problem["loc"]))
            return f"unknown key; allowed: {', '.join(allowed)}"
        case "missing":
            return f"missing; add it ({_fields(model, problem['loc'])[problem['loc'][-1]]})"
        case "literal_error":
            return f"got {given!r}; allowed: {context['expected'].replace(' or ', ', ')}"
        case "string_pattern_mismatch":
            return f"got {given!r}; must match {context['pattern']}"
        case "value_error":
            return str(context["error"])
        case _:
            return f"got {given!r}; {_lower_first(problem['msg'].removeprefix('Input '))}"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _fields(model: type[BaseModel], loc: tuple[str | int, ...]) -> dict[str | int, str]:
    """Return the keys that are allowed beside the last part of `loc`, with their descriptions."""
    for part in loc[:-1]:
        if part not in model.model_fields:
            continue  # a name or a number of the user's, in a mapping or list of sections
        model = _section_in(model.model_fields[str(part)].annotation) or model
    return {
        name: field.description or name
        for name, field in model.model_fields.items()
        if not field.exclude  # the environment's name is not a key of its file
    }


def _section_in(annotation: object) -> type[BaseModel] | None:
    """Return the section that an annotation is of, such as X of `dict[str, X] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(kind) for kind in get_args(annotation))
    return next((section for section in found if section), None)
