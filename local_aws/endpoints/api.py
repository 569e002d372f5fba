"""SageMaker's API of models and endpoints, where moto only records; the rest is moto's.

A request that AWS would refuse is refused: what does not exist, what exists already, what is
changed while it changes.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import ministack.app
from ministack.core.responses import get_account_id, get_region

from local_aws.endpoints.container import Container
from local_aws.endpoints.endpoint import Endpoint, Rollout, Variant
from local_aws.endpoints.runner import EndpointRunner, Scope
from local_aws.endpoints.runtime import Runtime
from local_aws.errors import EmulatorError

Response = tuple[int, dict[str, str], Any]
_PREFIX = "SageMaker."
_MODEL, _CONFIG, _ENDPOINT = "model", "endpoint-config", "endpoint"


class ApiError(Exception):
    """What SageMaker says to a request that it refuses."""


class EndpointsApi:
    """The actions on models, endpoint configurations and endpoints, and invocations."""

    def __init__(self, runner: EndpointRunner) -> None:
        self._runner, self._runtime = runner, Runtime(runner)
        self._records: dict[tuple[str, str, str, str], dict[str, Any]] = {}
        self._actions: dict[str, Callable[[dict[str, Any]], Mapping[str, Any]]] = {
            "CreateModel": self._create_model,
            "DescribeModel": lambda data: self._found(_MODEL, data["ModelName"]),
            "DeleteModel": lambda data: self._remove(_MODEL, data["ModelName"]),
            "CreateEndpointConfig": self._create_config,
            "DescribeEndpointConfig": lambda d: self._found(_CONFIG, d["EndpointConfigName"]),
            "DeleteEndpointConfig": lambda d: self._remove(_CONFIG, d["EndpointConfigName"]),
            "CreateEndpoint": self._create_endpoint,
            "UpdateEndpoint": self._update_endpoint,
            "UpdateEndpointWeightsAndCapacities": self._update_capacities,
            "DescribeEndpoint": self._describe_endpoint,
            "DeleteEndpoint": self._delete_endpoint,
            "ListEndpoints": self._list_endpoints,
        }

    def install(self) -> None:
        """Answer these actions before moto, which stands behind the control plane."""
        behind = ministack.app.SERVICE_HANDLERS["sagemaker"]

        async def handle(
            method: str, path: str, headers: Mapping[str, str], body: bytes, query: Any
        ) -> Any:
            if path.startswith("/endpoints/"):
                return await self._runtime.invoke(path, headers, body)
            action = headers.get("x-amz-target", "").removeprefix(_PREFIX)
            if action in self._actions:
                return self._answer(action, body)
            return await behind(method, path, headers, body, query)

        ministack.app.SERVICE_HANDLERS["sagemaker"] = handle

    def _answer(self, action: str, body: bytes) -> Response:
        headers = {"Content-Type": "application/x-amz-json-1.1"}
        try:
            result = self._actions[action](json.loads(body or b"{}"))
        except ApiError as error:
            said = {"__type": "ValidationException", "message": str(error)}
            return 400, headers, json.dumps(said).encode()
        return 200, headers, json.dumps(result, default=_plain).encode()

    @property
    def _scope(self) -> Scope:
        return str(get_account_id()), str(get_region())

    def _arn(self, kind: str, name: str) -> str:
        account, region = self._scope
        return f"arn:aws:sagemaker:{region}:{account}:{kind}/{name}"

    def _add(self, kind: str, name: str, record: dict[str, Any]) -> None:
        key = (*self._scope, kind, name)
        if key in self._records:
            raise ApiError(f'Cannot create already existing {kind} "{self._arn(kind, name)}".')
        self._records[key] = {**record, "CreationTime": datetime.now(UTC)}

    def _found(self, kind: str, name: str) -> dict[str, Any]:
        try:
            return self._records[(*self._scope, kind, name)]
        except KeyError:
            raise ApiError(f'Could not find {kind} "{self._arn(kind, name)}".') from None

    def _remove(self, kind: str, name: str) -> dict[str, Any]:
        self._found(kind, name)
        del self._records[(*self._scope, kind, name)]
        return {}

    def _create_model(self, data: dict[str, Any]) -> dict[str, Any]:
        name = data["ModelName"]
        arn = self._arn(_MODEL, name)
        if "PrimaryContainer" in data and not data["PrimaryContainer"].get("Image"):
            raise ApiError("PrimaryContainer must have an Image")
        self._add(_MODEL, name, {**data, "ModelArn": arn})
        return {"ModelArn": arn}

    def _create_config(self, data: dict[str, Any]) -> dict[str, Any]:
        name = data["EndpointConfigName"]
        for variant in data["ProductionVariants"]:
            self._found(_MODEL, variant["ModelName"])
        arn = self._arn(_CONFIG, name)
        self._add(_CONFIG, name, {**data, "EndpointConfigArn": arn})
        return {"EndpointConfigArn": arn}

    def _rollout(self, data: dict[str, Any], counts: Mapping[str, int]) -> Rollout:
        config = self._found(_CONFIG, data["EndpointConfigName"])
        variants = [
            Variant(one, counts.get(one["VariantName"], int(one.get("InitialInstanceCount", 1))))
            for one in config["ProductionVariants"]
        ]
        return Rollout(data["EndpointConfigName"], variants, data.get("DeploymentConfig"))

    def _create_endpoint(self, data: dict[str, Any]) -> dict[str, Any]:
        name, scope = data["EndpointName"], self._scope
        arn = self._arn(_ENDPOINT, name)
        if self._runner.get((*scope, name)):
            raise ApiError(f'Cannot create already existing endpoint "{arn}".')
        rollout = self._rollout(data, {})

        def make(model: str) -> Container:
            found = self._records.get((*scope, _MODEL, model))
            if found is None:
                raise EmulatorError(f"the model {model} is deleted: no container can start from it")
            return self._runner.container(scope, found)

        self._runner.add((*scope, name), Endpoint(name, arn, make, rollout))
        return {"EndpointArn": arn}

    def _endpoint(self, name: str) -> Endpoint:
        found = self._runner.get((*self._scope, name))
        if found is None:
            raise ApiError(f'Could not find endpoint "{self._arn(_ENDPOINT, name)}".')
        return found

    def _update_endpoint(self, data: dict[str, Any]) -> dict[str, Any]:
        endpoint = self._endpoint(data["EndpointName"])
        if endpoint.status != "InService":
            raise ApiError(f"Cannot update in-progress endpoint {endpoint.arn}.")
        kept = {variant.name: variant.count for variant in endpoint.live}
        counts = kept if data.get("RetainAllVariantProperties") else {}
        rollout = self._rollout(data, counts)
        endpoint.status, endpoint.reason = "Updating", ""
        endpoint.incoming = rollout  # last: the runner's thread takes it up
        return {"EndpointArn": endpoint.arn}

    def _update_capacities(self, data: dict[str, Any]) -> dict[str, Any]:
        endpoint = self._endpoint(data["EndpointName"])
        wanted = {
            one["VariantName"]: int(one["DesiredInstanceCount"])
            for one in data["DesiredWeightsAndCapacities"]
            if "DesiredInstanceCount" in one
        }
        for variant in endpoint.live:
            variant.count = wanted.get(variant.name, variant.count)
        return {"EndpointArn": endpoint.arn}

    def _describe_endpoint(self, data: dict[str, Any]) -> dict[str, Any]:
        endpoint = self._endpoint(data["EndpointName"])
        described = {
            "EndpointName": endpoint.name,
            "EndpointArn": endpoint.arn,
            "EndpointConfigName": endpoint.config_name or data.get("EndpointConfigName", "-"),
            "EndpointStatus": endpoint.status,
            "FailureReason": endpoint.reason,
            "CreationTime": endpoint.created,
            "LastModifiedTime": endpoint.modified,
            "LastDeploymentConfig": endpoint.deployment,
            "ProductionVariants": [
                {
                    "VariantName": variant.name,
                    "CurrentWeight": 1.0,
                    "DesiredWeight": 1.0,
                    "CurrentInstanceCount": sum(one.alive for one in variant.containers),
                    "DesiredInstanceCount": variant.count,
                }
                for variant in endpoint.live
            ],
        }
        return {key: value for key, value in described.items() if value not in ("", None)}

    def _delete_endpoint(self, data: dict[str, Any]) -> dict[str, Any]:
        self._endpoint(data["EndpointName"]).deleted = True
        return {}

    def _list_endpoints(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "Endpoints": [
                {
                    "EndpointName": one.name,
                    "EndpointArn": one.arn,
                    "EndpointStatus": one.status,
                    "CreationTime": one.created,
                    "LastModifiedTime": one.modified,
                }
                for one in self._runner.all(self._scope)
            ]
        }


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.timestamp()
    raise TypeError(f"{type(value).__name__} cannot be put into JSON")
