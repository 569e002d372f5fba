"""Mistakes that the person who runs a server can mend. Each message is one line."""


class UserError(Exception):
    """Something given to us is wrong; the message says what, and what is allowed."""


class SettingsError(UserError):
    """An environment variable of the server or the node is missing or wrong."""


class WeightsError(UserError):
    """A folder of weights, its manifest or one of its files cannot be used."""
