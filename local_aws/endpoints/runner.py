"""The part of the embedded AWS that plays SageMaker's endpoints, in a thread of its own."""

import logging
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local_aws.clients import client
from local_aws.endpoints.container import Container
from local_aws.endpoints.endpoint import Endpoint
from local_aws.endpoints.image import Image
from local_aws.stepper import Stepper

_PAUSE = 0.2
_log = logging.getLogger(__name__)
Scope = tuple[str, str]  # account and region
Key = tuple[str, str, str]  # account, region and name


class EndpointRunner:
    """Steps every endpoint of every account and region.

    Args:
        endpoint: URL of the embedded AWS.
        folder: Where the containers' folders are made.
        variables: What every container is told besides, such as whom to trust.
        image: What stands for the serving image; left out, made below `folder`.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        folder: Path,
        variables: Mapping[str, str],
        image: Image | None = None,
    ) -> None:
        self._url, self._folder, self._variables = endpoint, folder, dict(variables)
        self._image = image or Image(folder / "image")
        self._endpoints: dict[Key, Endpoint] = {}
        self._steps = Stepper("endpoints", self._step, _PAUSE)

    def start(self) -> None:
        """Begin to play."""
        self._steps.start()

    def stop(self) -> None:
        """End every container."""
        self._steps.stop(10)
        for endpoint in list(self._endpoints.values()):
            for container in endpoint.containers():
                container.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, key: Key, endpoint: Endpoint) -> None:
        """Play an endpoint from now on."""
        self._endpoints[key] = endpoint

    def get(self, key: Key) -> Endpoint | None:
        """Return an endpoint that is not deleted."""
        found = self._endpoints.get(key)
        return None if found is None or found.deleted else found

    def all(self, scope: Scope) -> list[Endpoint]:
        """Return the endpoints of an account in a region."""
        found = [(key, one) for key, one in list(self._endpoints.items()) if key[:2] == scope]
        return [one for _, one in found if not one.deleted]

    def remove(self, key: Key) -> None:
        """Delete an endpoint, and return when its containers have ended."""
        endpoint = self._endpoints[key]
        endpoint.deleted = True
        while key in self._endpoints and self._steps.alive:
            time.sleep(0.05)

    def container(self, scope: Scope, model: Mapping[str, Any]) -> Container:
        """Return the container of a model, which is not started yet."""
        account, region = scope
        given = {
            **self._variables,
            "AWS_ENDPOINT_URL": self._url,
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
            "AWS_ACCESS_KEY_ID": account,
            "AWS_SECRET_ACCESS_KEY": "local",
        }
        s3 = client("s3", self._url, account, region)
        folder = self._folder / "containers" / f"{model['ModelName'][:40]}-{uuid.uuid4().hex[:8]}"
        return Container(folder, self._image, model, s3, given)

    def _step(self) -> None:
        for key, endpoint in list(self._endpoints.items()):
            try:
                endpoint.step()
            except Exception:  # whatever one step met, the others need theirs
                _log.exception("endpoint %s", key[2])
            if endpoint.deleted:
                del self._endpoints[key]

    def describe(self) -> list[dict[str, Any]]:
        """Return the containers that live: which endpoint, which process, where it prints to."""
        return [
            {
                "endpoint": endpoint.name,
                "status": endpoint.status,
                "serves": any(container in variant.containers for variant in endpoint.live),
                "pid": container.pid,
                "port": container.port,
                "restarts": container.restarts,
                "log": str(container.folder / "log"),
            }
            for endpoint in list(self._endpoints.values())
            for container in endpoint.containers()
        ]
