"""The store's user and password, from Secrets Manager; fetched again when they are refused."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from model_code.common.aws import client
from model_code.mla.store.errors import UnavailableError
from model_code.mla.store.resp import Credentials

_AGAIN_S = 5.0  # between two fetches: a wrong secret must not become a stream of calls


class SecretCredentials:
    """Calls GetSecretValue when it must. For any thread.

    After a rotation the old password is refused, the secret is fetched again, and that is all.
    """

    def __init__(self, arn: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._arn, self._clock = arn, clock
        self._lock = threading.Lock()
        self._client: Any = None
        self._found: Credentials | None = None
        self._fetched = -1e9

    def __call__(self, refused: bool) -> Credentials:
        """Return the credentials; `refused` asks for newer ones if it is time."""
        with self._lock:
            since = self._clock() - self._fetched
            if since > _AGAIN_S and (refused or self._found is None):
                self._fetched = self._clock()
                self._found = self._fetch()
            if self._found is None:
                raise UnavailableError(f"the secret {self._arn} could not be read a moment ago")
            return self._found

    def _fetch(self) -> Credentials:
        if self._client is None:
            self._client = client("secretsmanager", attempts=2)
        text = self._client.get_secret_value(SecretId=self._arn)["SecretString"]
        try:
            value = json.loads(text)
            username, password = value["username"], value["password"]
        except (ValueError, KeyError, TypeError):
            username = password = None
        if not isinstance(username, str) or not isinstance(password, str):
            # Without the cause: its text may show a part of the secret.
            raise UnavailableError(
                f"the secret {self._arn} must be JSON with a username and a password"
            ) from None
        return Credentials(username, password)
