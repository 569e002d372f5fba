"""Why the store gave no answer. None of these reaches a client: each of them is a miss."""


class StoreError(Exception):
    """The store did not do what it was asked."""


class UnavailableError(StoreError):
    """The connection could not be made, broke, or took longer than its deadline."""


class ProtocolError(StoreError):
    """The peer sent what no server of this protocol sends; the connection must be closed."""


class ReplyError(StoreError):
    """The server refused a command. The connection is still good.

    Args:
        message: The server's line, such as `MOVED 3999 10.0.0.2:6379`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code, _, self.detail = message.partition(" ")


class AuthError(StoreError):
    """The server does not take the user name or the password."""
