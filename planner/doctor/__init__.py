"""Pre-flight: what a deployment would find out after twenty minutes, found before it starts."""

from planner.doctor.findings import Environment, Finding, Group, Subnet
from planner.doctor.offline import groups_of, offline
from planner.doctor.online import online

__all__ = ["Environment", "Finding", "Group", "Subnet", "groups_of", "offline", "online"]
