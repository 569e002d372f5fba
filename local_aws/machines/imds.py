"""The instance metadata service, version 2, of the machines."""

import json
import secrets
import time
from collections.abc import Mapping
from urllib.parse import unquote

from local_aws.machines.runner import Runner

PREFIX = "/_isomorph/imds/"
_LONGEST = 21600
_META = "latest/meta-data/"
_IDENTITY = "latest/dynamic/instance-identity/document"

Response = tuple[int, bytes]


class Imds:
    """Answers what a machine asks about itself; only with a token, as version 2 wants it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._tokens: dict[str, tuple[str, float]] = {}

    def answer(self, method: str, path: str, headers: Mapping[str, str]) -> Response:
        """Answer a request whose path begins with `PREFIX` and the instance's id."""
        instance_id, _, path = unquote(path).removeprefix(PREFIX).partition("/")
        member = self._runner.member(instance_id)
        if member is None:
            return 404, b"no such instance"
        if path == "latest/api/token":
            return self._issue(method, instance_id, headers)
        holder, until = self._tokens.get(headers.get("x-aws-ec2-metadata-token", ""), ("", 0.0))
        if holder != instance_id or time.monotonic() > until:
            return 401, b"Unauthorized"
        if method != "GET":
            return 405, b"Method Not Allowed"
        facts = {**member.facts, "autoscaling/target-lifecycle-state": member.target_state}
        if path == _IDENTITY:
            document = {
                "instanceId": facts["instance-id"],
                "instanceType": facts["instance-type"],
                "imageId": facts["ami-id"],
                "privateIp": facts["local-ipv4"],
                "region": facts["placement/region"],
                "availabilityZone": facts["placement/availability-zone"],
                "accountId": member.account,
            }
            return 200, json.dumps(document).encode()
        fact = facts.get(path.removeprefix(_META)) if path.startswith(_META) else None
        return (404, b"Not Found") if fact is None else (200, fact.encode())

    def _issue(self, method: str, instance_id: str, headers: Mapping[str, str]) -> Response:
        if method != "PUT":
            return 405, b"Method Not Allowed"
        asked = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not asked.isdigit() or not 1 <= int(asked) <= _LONGEST:
            return 400, b"Bad Request"
        now = time.monotonic()
        self._tokens = {name: kept for name, kept in self._tokens.items() if kept[1] > now}
        token = secrets.token_urlsafe(32)
        self._tokens[token] = (instance_id, now + int(asked))
        return 200, token.encode()
