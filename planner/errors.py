"""What the planner refuses to plan."""


class PlanError(ValueError):
    """A plan that cannot be made. The message is one line for the person who asked."""
