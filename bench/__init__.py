"""Measurements, each beside a named peer or limit in one run."""

from collections.abc import Callable, Iterable
from typing import Any

BENCHES: dict[str, Callable[[], Iterable[Any]]] = {}
