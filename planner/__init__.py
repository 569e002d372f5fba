"""From a model and its load to a sized, priced and explained AWS plan. Pure functions, offline."""

from model_code.common.architecture import Architecture
from planner.errors import PlanError
from planner.load import Load, parse_load
from planner.planning import Plan, plan, resolve
from planner.text import render
from planner.writing import write

__all__ = [
    "Architecture",
    "Load",
    "Plan",
    "PlanError",
    "parse_load",
    "plan",
    "render",
    "resolve",
    "write",
]
