"""Load balancing over machines: which target gets a request, and how healthy each is."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from ministack.services import alb

from local_aws.machines import rules
from local_aws.machines.runner import Runner
from local_aws.settings import HOST

_NONE_HEALTHY = (
    503,
    {"Content-Type": "text/html"},
    b"<html><body><h1>503 Service Temporarily Unavailable</h1></body></html>",
)


class LoadBalancing:
    """Makes the control plane's load balancers send requests to machines."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._turns: dict[str, Iterator[int]] = defaultdict(itertools.count)

    def install(self) -> None:
        """Put these functions in the place of the control plane's own."""
        forward = alb._proxy_http_target

        async def proxy(
            target: Any, group: dict[str, Any], method: str, path: str, headers: Any, *rest: Any
        ) -> Any:
            arn = group["TargetGroupArn"]
            ports = self._healthy_ports(arn)
            if not str(target["Id"]).startswith("i-"):  # an address: of no machine of ours
                return await forward(target, group, method, path, headers, *rest)
            if not ports:
                return _NONE_HEALTHY
            session = rules.session_seconds(arn)
            kept = rules.stays_with(headers, rules.TARGET_COOKIE, arn) if session else None
            chosen = kept if kept in ports else self._next(arn, list(ports))
            where = {"Id": HOST, "Port": ports[chosen]}
            response = await forward(where, group, method, path, headers, *rest)
            if session is None:
                return response
            return rules.keep(response, rules.TARGET_COOKIE, arn, chosen, session)

        alb._proxy_http_target = proxy
        rules.install()
        alb._ACTION_MAP["DescribeTargetHealth"] = self._describe_target_health

    def _states(self, arn: str) -> dict[str, tuple[str, str, int]]:
        """Return state, explanation and port of each machine that is a target of the group."""
        return {
            member.instance_id: (check.state, check.detail, member.machine.port)
            for member in self._runner.members()
            for check in list(member.checks)
            if check.group.arn == arn
        }

    def _next(self, arn: str, targets: list[str]) -> str:
        return targets[next(self._turns[arn]) % len(targets)]

    def _healthy_ports(self, arn: str) -> dict[str, int]:
        """Return the ports of a group's healthy machines, by their ids."""
        states = self._states(arn)
        return {name: port for name, (state, _, port) in states.items() if state == "healthy"}

    def _describe_target_health(self, query: Mapping[str, Any]) -> Any:
        arn = alb._p(query, "TargetGroupArn")
        if arn not in alb._tgs:
            return alb._error("TargetGroupNotFound", f"Target group '{arn}' not found.")
        asked = {target["Id"] for target in alb._parse_targets_param(query)}
        states = self._states(arn)
        described = ""
        for target in alb._targets.get(arn, []):
            if asked and target["Id"] not in asked:
                continue
            state, detail, _ = states.get(target["Id"], ("unused", "no machine of ours", 0))
            port = target.get("Port") or alb._tgs[arn].get("Port")
            why = "" if state == "healthy" else f"<Description>{alb._esc(detail)}</Description>"
            described += (
                f"<member><Target><Id>{target['Id']}</Id><Port>{port}</Port></Target>"
                f"<TargetHealth><State>{state}</State>{why}</TargetHealth></member>"
            )
        return alb._xml(
            200,
            "DescribeTargetHealth",
            f"<TargetHealthDescriptions>{described}</TargetHealthDescriptions>",
        )
