"""Rotation of secrets: the function that a secret names is really called, step by step."""

import json
import logging
import threading
from typing import Any

from ministack.core.responses import error_response_json, get_account_id, get_region, new_uuid
from ministack.services import secretsmanager as records

from local_aws.clients import client
from local_aws.resources.table import Aws, Made, Properties, Resource, Type

SCHEDULE = "AWS::SecretsManager::RotationSchedule"
_STEPS = ("createSecret", "setSecret", "testSecret", "finishSecret")
_log = logging.getLogger(__name__)


def rotate_with_functions(endpoint: str) -> None:
    """Let RotateSecret call the secret's function; nothing rotates by the calendar here."""
    rotate, read = records._rotate_secret, records._get_secret_value

    def rotate_secret(data: dict[str, Any]) -> Any:
        _, secret = records._resolve(data.get("SecretId"))
        function = data.get("RotationLambdaARN") or (secret or {}).get("RotationLambdaARN")
        if not secret or secret.get("DeletedDate") or not function:
            return rotate(data)  # which refuses it
        secret["RotationLambdaARN"], secret["RotationEnabled"] = function, True
        secret["RotationRules"] = data.get("RotationRules") or secret.get("RotationRules")
        version = data.get("ClientRequestToken") or new_uuid()
        if data.get("RotateImmediately", True):
            secret["Versions"][version] = {
                "SecretString": None,
                "SecretBinary": None,
                "CreatedDate": 0,
                "Stages": ["AWSPENDING"],
            }
            given = (endpoint, get_account_id(), get_region(), function, secret["ARN"], version)
            threading.Thread(target=_rotate, args=given, name="rotation", daemon=True).start()
        answer = {"ARN": secret["ARN"], "Name": secret["Name"], "VersionId": version}
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    def get_secret_value(data: dict[str, Any]) -> Any:
        answer = read(data)
        if answer[0] == 200 and not {"SecretString", "SecretBinary"} & set(json.loads(answer[2])):
            text = "Secrets Manager can't find the specified secret value for staging label"
            return error_response_json("ResourceNotFoundException", text, 400)
        return answer

    records._rotate_secret, records._get_secret_value = rotate_secret, get_secret_value


def _rotate(
    endpoint: str, account: str, region: str, function: str, secret: str, version: str
) -> None:
    functions = client("lambda", endpoint, account, region)
    for step in _STEPS:
        event = {"Step": step, "SecretId": secret, "ClientRequestToken": version}
        answer = functions.invoke(FunctionName=function, Payload=json.dumps(event))
        if answer.get("FunctionError"):
            _log.error("%s of %s: %s", step, secret, answer["Payload"].read().decode())
            return


def _create(aws: Aws, resource: Resource) -> Made:
    given = resource.properties
    rules = dict(given["RotationRules"])
    if "AutomaticallyAfterDays" in rules:
        rules["AutomaticallyAfterDays"] = int(rules["AutomaticallyAfterDays"])
    now = str(given.get("RotateImmediatelyOnUpdate", True)).lower() == "true"
    made = aws.client("secretsmanager").rotate_secret(
        SecretId=given["SecretId"],
        RotationLambdaARN=given["RotationLambdaARN"],
        RotationRules=rules,
        RotateImmediately=now,
    )
    return Made(made["ARN"], {})


def _update(aws: Aws, _: str, resource: Resource) -> Made:
    return _create(aws, resource)


def _delete(_: Aws, secret: str, __: Properties) -> None:
    _, record = records._resolve(secret)  # the control plane lacks CancelRotateSecret
    if record is not None:
        record["RotationEnabled"] = False


ROTATION = (
    Type(
        SCHEDULE,
        frozenset({"RotateImmediatelyOnUpdate", "RotationLambdaARN", "RotationRules", "SecretId"}),
        _create,
        _delete,
        _update,
    ),
)
