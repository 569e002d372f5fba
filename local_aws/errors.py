"""What the embedded AWS says to the person who started it."""


class EmulatorError(Exception):
    """The embedded AWS cannot start, stop or go on; the message is one line."""
