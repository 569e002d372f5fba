"""What a machine knows about itself: EC2's metadata service, version 2. Standard library only.

boot.sh runs this file with the system's Python too, to sign what went wrong: Python 3.9 must do.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request

_ENDPOINT = "http://169.254.169.254"
_TIMEOUT_S = 2.0
_ATTEMPTS = 3
_TOKEN_S = 300


class Metadata:
    """Asks the metadata service, with a token that is fetched when first needed."""

    def __init__(self) -> None:
        base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _ENDPOINT
        self._base = base.rstrip("/") + "/latest/"
        # The service is on the machine's own link; a proxy meant for other traffic has it not.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._token = ""

    @property
    def instance_id(self) -> str:
        """The machine's id."""
        found = self.get("instance-id")
        if found is None:
            raise OSError("the metadata service knows no instance-id")
        return found

    def get(self, path: str) -> str | None:
        """Return meta-data/`path`, or None if there is no such thing."""
        for fresh in (False, True):
            if fresh or not self._token:
                header = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
                self._token = self._ask("PUT", "api/token", header)
            try:
                return self._ask(
                    "GET", "meta-data/" + path, {"X-aws-ec2-metadata-token": self._token}
                )
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401 or fresh:  # 401: the token has expired
                    raise
        raise AssertionError("unreachable")

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        # The address is the machine's own setting, not anyone's input.
        request = urllib.request.Request(self._base + path, method=method, headers=headers)  # noqa: S310
        for attempt in range(_ATTEMPTS):
            try:
                with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                    return answer.read().decode().strip()
            except urllib.error.HTTPError as error:
                if error.code < 500 or attempt == _ATTEMPTS - 1:
                    raise
            except OSError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")


if __name__ == "__main__":
    print(Metadata().instance_id)
