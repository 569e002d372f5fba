"""The one exception that a command turns into one line and an exit code."""


class UserError(Exception):
    """A mistake or a failure that the person at the terminal can mend; its text is one line."""
