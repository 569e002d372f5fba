"""The one endpoint: our own paths and the load balancers first, the control plane for the rest."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

import ministack.app
from ministack.core.responses import set_request_account_id, set_request_region
from ministack.services import alb

from local_aws.clusters.runner import Clusters
from local_aws.clusters.sessions import Sessions
from local_aws.endpoints.runner import EndpointRunner
from local_aws.functions.runner import FunctionRunner
from local_aws.functions.urls import FunctionUrls
from local_aws.machines.imds import PREFIX as IMDS
from local_aws.machines.imds import Imds
from local_aws.machines.member import Member
from local_aws.machines.runner import Runner
from local_aws.settings import ENDPOINTS, FUNCTIONS, MACHINES, NODES, SESSIONS

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Front:
    """The ASGI application."""

    def __init__(
        self,
        runner: Runner,
        functions: FunctionRunner,
        endpoints: EndpointRunner,
        clusters: Clusters,
        sessions: Sessions,
    ) -> None:
        self._runner, self._functions, self._endpoints = runner, functions, endpoints
        self._clusters, self._sessions = clusters, sessions
        self._urls = FunctionUrls(functions)
        self._imds = Imds(runner)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "http":
            path = scope["path"]
            headers = {name.decode(): text.decode("latin-1") for name, text in scope["headers"]}
            if path == MACHINES:
                body = json.dumps(machines(self._runner)).encode()
                await _send(send, 200, body, "application/json")
                return
            if path == FUNCTIONS:
                body = json.dumps(self._functions.describe()).encode()
                await _send(send, 200, body, "application/json")
                return
            if path == ENDPOINTS:
                body = json.dumps(self._endpoints.describe()).encode()
                await _send(send, 200, body, "application/json")
                return
            if path == NODES:
                body = json.dumps(self._clusters.describe()).encode()
                await _send(send, 200, body, "application/json")
                return
            if path.startswith(SESSIONS):
                await self._sessions.stream(path, headers, send)
                return
            if path.startswith(IMDS):
                status, body = self._imds.answer(scope["method"], path, headers)
                await _send(send, status, body, "text/plain")
                return
            if url := self._urls.resolve(headers.get("host", "")):
                await self._urls.answer(url, scope, receive, send)
                return
            balancer = _load_balancer(headers.get("host", ""))
            if balancer:
                await _balance(balancer, scope, headers, receive, send)
                return
        await ministack.app.app(scope, receive, send)


async def _send(send: Send, status: int, body: bytes, kind: str) -> None:
    await ministack.app._send_response(send, status, {"Content-Type": kind}, body)


def _load_balancer(host: str) -> dict[str, Any] | None:
    """Return the load balancer of that DNS name, and act for the account and region it is in."""
    name = host.partition(":")[0].lower()
    if not name.endswith(".elb.amazonaws.com"):
        return None
    for (account, region, _), balancer in alb._lbs.all_items():
        if balancer["DNSName"].lower() == name:
            set_request_account_id(account)
            set_request_region(region)
            found: dict[str, Any] = balancer
            return found
    return None


async def _balance(
    balancer: dict[str, Any], scope: Message, headers: dict[str, str], receive: Receive, send: Send
) -> None:
    """Send a request to a target: /health too, which the control plane takes for its own."""
    query = scope.get("query_string", b"").decode("latin-1")
    body = await ministack.app._read_request_body(receive, scope["method"], headers)
    port = headers["host"].partition(":")[2]
    response = await alb.dispatch_request(
        balancer,
        scope["method"],
        scope["path"],
        headers,
        body,
        ministack.app.parse_qs(query, keep_blank_values=True),
        int(port) if port.isdigit() else 80,
        client_ip=scope["client"][0],
        raw_query_string=query,
        raw_path=scope["raw_path"].decode("ascii"),
    )
    await ministack.app._send_if_handled(
        ministack.app._with_date_header(send), response, receive, head=scope["method"] == "HEAD"
    )


def machines(runner: Runner) -> list[dict[str, Any]]:
    """Describe every machine, and the last failed ones with the reason."""
    return [
        _machine(member, account, region, name)
        for (account, region, name), group in runner.groups()
        for member in [*list(group.ended), *list(group.members)]
    ]


def _machine(member: Member, account: str, region: str, group: str) -> dict[str, Any]:
    machine = member.machine
    units = [vars(unit) for unit in list(machine.units.values())]
    first = units[0] if units else {}
    return {
        "id": member.instance_id,
        "account": account,
        "region": region,
        "group": group,
        "zone": member.zone,
        "version": member.template["Version"],
        "state": member.phase,
        "ready": member.ready,
        "health": [check.state for check in member.checks],
        "port": machine.port,
        "pid": first.get("pid"),
        "restarts": sum(unit["restarts"] for unit in units),
        "since": datetime.fromtimestamp(machine.since, UTC).isoformat(timespec="seconds"),
        "reason": member.failure,
        "units": units,
        "console": str(machine.folder / "console.log"),
    }
