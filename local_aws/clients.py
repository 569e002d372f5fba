"""boto3 clients of the embedded AWS, for its own parts."""

from functools import lru_cache
from threading import Lock
from typing import Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.loaders import create_loader

_lock = Lock()
_models = create_loader()  # remembers what it read; a session of its own would read megabytes again


@lru_cache(maxsize=256)
def _make(service: str, endpoint: str, account: str, region: str) -> Any:
    core = botocore.session.get_session()
    core.register_component("data_loader", _models)
    session = boto3.Session(
        botocore_session=core,
        # The control plane takes a key of twelve digits for the caller's account.
        aws_access_key_id=account,
        aws_secret_access_key="local",  # noqa: S106 - nothing checks it
        region_name=region,
    )
    config = Config(retries={"max_attempts": 1}, connect_timeout=5, read_timeout=60)
    return session.client(service, endpoint_url=endpoint, config=config)


def client(service: str, endpoint: str, account: str, region: str) -> Any:
    """Return the client of a service as seen from one account and region."""
    with _lock:  # making a client is not thread-safe, using one is
        return _make(service, endpoint, account, region)


def is_gone(error: ClientError) -> bool:
    """Tell whether a service said that there is no such thing (any more)."""
    code = error.response.get("Error", {}).get("Code", "")
    told = str(error)
    gone = "does not exist" in told or "Could not find" in told
    return gone or code == "404" or "NotFound" in code or "NoSuch" in code
