"""Reads the fields of a config.json strictly: right type, sane size, none left over."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST_FILE = 16 * 2**20


class ModelError(ValueError):
    """A model that cannot be read. The message is one line for the person who gave it."""


def shown(value: object) -> str:
    """Return a value as it appears in a message: on one line, and short."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an int of thousands of digits; a list within itself
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= 60 else text[:57] + "..."


def load_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or say what is wrong with the file."""

    def refuse_constant(name: str) -> None:
        raise ModelError(f"{path}: {name} is not a number that a model can have")

    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ModelError(f"{path}: larger than 16 MiB, so this is not a config.json")
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
    except ModelError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ModelError(f"{path}: cannot be read: {reason}") from error
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ModelError(f"{path}: not valid JSON{where}; is the file truncated?") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: a config.json holds an object, this holds {shown(value)}")
    return value


class Fields:
    """The fields of one object in a config.json, each checked when it is taken.

    Args:
        source: What messages begin with: the file's name.
        defaults: What an absent field means in this family, as transformers' config class says.
    """

    def __init__(
        self, values: Mapping[str, Any], *, source: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self._values = values
        self._source = source
        self._defaults = defaults or {}
        self._taken: set[str] = set()

    def error(self, problem: str) -> ModelError:
        """Return the error that says what is wrong in this file."""
        return ModelError(f"{self._source}: {problem}")

    def has(self, key: str) -> bool:
        """Return whether the file gives the field a value other than null."""
        return self._values.get(key) is not None

    def take(self, key: str) -> Any:
        """Return the field, or what its absence means, or None."""
        self._taken.add(key)
        if key in self._values:
            return self._values[key]
        return self._defaults.get(key)

    def whole(self, key: str, *, low: int = 1, high: int = 2**20) -> int:
        """Return a whole number that must be there."""
        value = self.optional_whole(key, low=low, high=high)
        if value is None:
            raise self.error(f"{key} is missing; it must be a whole number from {low:,}")
        return value

    def optional_whole(self, key: str, *, low: int = 1, high: int = 2**20) -> int | None:
        """Return a whole number, or None when absent or null."""
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(
                f"{key} is {shown(value)}; allowed is a whole number from {low:,} to {high:,}"
            )
        return value

    def number(self, key: str, *, low: float = 0.0, high: float = 1e12) -> float | None:
        """Return a number above `low`, or None when absent or null."""
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{key} is {shown(value)}; allowed is a number")
        if not low < value <= high or not math.isfinite(value):
            raise self.error(f"{key} is {shown(value)}; allowed is above {low:g}, to {high:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """Return a truth value; absent or null is false unless the family says otherwise."""
        value = self.take(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{key} is {shown(value)}; allowed is true or false")
        return bool(value)

    def choice(self, key: str, allowed: tuple[str, ...]) -> str | None:
        """Return one of a few words, or None when absent or null."""
        value = self.take(key)
        if value is not None and value not in allowed:
            raise self.error(f"{key} is {shown(value)}; allowed is {', '.join(allowed)}")
        return str(value) if value is not None else None

    def choices(self, key: str, allowed: tuple[str, ...], *, length: int) -> list[str] | None:
        """Return a list of words of a given length, or None when absent or null."""
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length:
            given = f"{len(value)} entries" if isinstance(value, list) else shown(value)
            raise self.error(f"{key} is {given}; allowed is a list of {length}, one a layer")
        for entry in value:
            if entry not in allowed:
                raise self.error(f"{key} has {shown(entry)}; allowed is {', '.join(allowed)}")
        return value

    def object(self, key: str) -> dict[str, Any] | None:
        """Return an object, or None when absent or null."""
        value = self.take(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(f"{key} is {shown(value)}; allowed is an object")
        return value

    def refuse_others(self, known: frozenset[str]) -> None:
        """Refuse the fields that nobody took and that are not known to leave sizes alone."""
        for key in self._values:
            if key not in self._taken and key not in known and not key.startswith("_"):
                raise self.error(
                    f"field {shown(key)} is not known in this family; nothing is guessed"
                )
