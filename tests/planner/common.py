"""What several tests of the planner share."""

import datetime
import math
from typing import Any

from model_code.common.architecture import Architecture, read
from planner.planning import MODELS

TODAY = datetime.date(2026, 11, 22)
NAMES = sorted(path.stem for path in MODELS.glob("*.json"))


def model(name: str) -> Architecture:
    return read(MODELS / f"{name}.json")


def finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(finite(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return all(finite(entry) for entry in value)
    return True
