"""From a model and its load to a sized, priced and explained AWS plan. Pure functions, offline."""

from planner.errors import PlanError
from planner.load import Load, parse_load
from planner.planning import Plan, plan, resolve
from planner.text import render
from planner.writing import write

__all__ = ["Load", "Plan", "PlanError", "parse_load", "plan", "render", "resolve", "write"]
