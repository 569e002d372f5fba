"""Requests through one load balancer go where the deployed listener's rules say."""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from local_aws.machines.rules import choose_group, keep, rewritten, stays_with
from tests.local_aws import fleet
from tests.local_aws.conftest import Emulator, until
from tests.local_aws.templates import Template, attribute, ref, resource

STACK = "pools"
SESSION = [
    {"Key": "stickiness.enabled", "Value": "true"},
    {"Key": "stickiness.type", "Value": "lb_cookie"},
    {"Key": "stickiness.lb_cookie.duration_seconds", "Value": "600"},
]


def pool(name: str) -> Template:
    """Return a fleet that says its pool's name, and its target group."""
    one = fleet.template(fleet.boot(version=name), group={"DesiredCapacity": "1"})["Resources"]
    targets = copy.deepcopy(one["Targets"])
    targets["Properties"] |= {"TargetGroupAttributes": SESSION}
    renamed = {"Template": f"Template{name}", "Targets": f"Targets{name}"}
    group = copy.deepcopy(one["Group"])
    group["Properties"] |= {
        "LaunchTemplate": {
            "LaunchTemplateId": ref(renamed["Template"]),
            "Version": attribute(renamed["Template"], "LatestVersionNumber"),
        },
        "TargetGroupARNs": [ref(renamed["Targets"])],
    }
    return {
        renamed["Template"]: one["Template"],
        renamed["Targets"]: targets,
        f"Group{name}": group,
    }


def forward(**weights: int) -> list[dict[str, Any]]:
    shares = [
        {"TargetGroupArn": ref(f"Targets{name}"), "Weight": weight}
        for name, weight in weights.items()
    ]
    session = {"Enabled": True, "DurationSeconds": 600}
    return [
        {
            "Type": "forward",
            "ForwardConfig": {"TargetGroups": shares, "TargetGroupStickinessConfig": session},
        }
    ]


def rule(priority: int, condition: dict[str, Any], actions: Any, **more: Any) -> dict[str, Any]:
    return resource(
        "ElasticLoadBalancingV2::ListenerRule",
        ListenerArn=ref("Listener"),
        Priority=priority,
        Conditions=[condition],
        Actions=actions,
        **more,
    )


def header(name: str) -> dict[str, Any]:
    given = {"HttpHeaderName": "x-isomorph-pool", "Values": [name]}
    return {"Field": "http-header", "HttpHeaderConfig": given}


def template(code: int, canary: int) -> Template:
    base = fleet.template("")["Resources"]
    kept = {name: base[name] for name in ("Vpc", "Subnet", "Balancer", "Listener")}
    kept["Listener"]["Properties"]["DefaultActions"] = [
        {"Type": "forward", "TargetGroupArn": ref("Targetsprose")}
    ]
    rewrite = {"Rewrites": [{"Regex": "^/pools/code/(.*)$", "Replace": "/$1"}]}
    path = {"Field": "path-pattern", "PathPatternConfig": {"Values": ["/pools/code/*"]}}
    return {
        "Resources": {
            **kept,
            **pool("prose"),
            **pool("code"),
            **pool("canary"),
            "Header": rule(10, header("code"), forward(code=code, canary=canary)),
            "Path": rule(
                11,
                path,
                [{"Type": "forward", "TargetGroupArn": ref("Targetscode")}],
                Transforms=[{"Type": "url-rewrite", "UrlRewriteConfig": rewrite}],
            ),
        },
        "Outputs": {"Host": {"Value": attribute("Balancer", "DNSName")}},
    }


@pytest.fixture(scope="module")
def pools(emulator: Emulator) -> Iterator[Emulator]:
    assert emulator.create(STACK, template(50, 50)) == "CREATE_COMPLETE", emulator.failure(STACK)

    def ready() -> bool:
        found = emulator.running.machines()
        return len(found) == 3 and all(one["ready"] for one in found)

    until(ready, "three machines that serve", 40)
    yield emulator
    assert emulator.delete(STACK) == "DELETE_COMPLETE"


def client(emulator: Emulator) -> httpx.Client:
    [stack] = emulator.client("cloudformation").describe_stacks(StackName=STACK)["Stacks"]
    host = stack["Outputs"][0]["OutputValue"]
    return httpx.Client(base_url=emulator.running.endpoint, headers={"Host": host}, timeout=20)


def ask(emulator: Emulator, path: str = "/", **headers: str) -> dict[str, Any]:
    with client(emulator) as session:
        found: dict[str, Any] = session.get(path, headers=headers).raise_for_status().json()
        return found


def pooled(name: str) -> dict[str, str]:
    return {"x-isomorph-pool": name}


def test_a_header_chooses_the_pool_and_its_lack_the_default(pools: Emulator) -> None:
    assert ask(pools)["version"] == "prose"
    assert ask(pools, **pooled("code"))["version"] in ("code", "canary")
    assert ask(pools, **pooled("nobody"))["version"] == "prose"


def test_a_path_chooses_the_pool_and_is_taken_away(pools: Emulator) -> None:
    said = ask(pools, "/pools/code/v1/models?limit=2")
    assert (said["version"], said["path"]) == ("code", "/v1/models?limit=2")


def test_requests_without_cookies_are_shared_by_weight(pools: Emulator) -> None:
    seen = Counter(ask(pools, **pooled("code"))["version"] for _ in range(60))
    assert set(seen) == {"code", "canary"}
    assert min(seen.values()) > 10  # 30 expected; below 11 once in ten million runs


def test_a_caller_with_cookies_stays_with_its_node(pools: Emulator) -> None:
    with client(pools) as session:
        first = session.get("/", headers=pooled("code"))
        cookies = dict(first.cookies)
        assert set(cookies) == {"AWSALB", "AWSALBTG"}
        for _ in range(20):
            again = session.get("/", headers={**pooled("code"), "Cookie": _cookie(cookies)})
            assert again.json()["pid"] == first.json()["pid"]


def _cookie(cookies: dict[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


def test_a_forged_cookie_is_ignored(pools: Emulator) -> None:
    for value in ("x", "bm90IGpzb24=", "W10="):
        said = ask(pools, Cookie=f"AWSALB={value}; AWSALBTG={value}", **pooled("code"))
        assert said["version"] in ("code", "canary")


def test_changed_weights_are_followed(pools: Emulator) -> None:
    assert pools.update(STACK, template(100, 0)) == "UPDATE_COMPLETE"
    assert {ask(pools, **pooled("code"))["version"] for _ in range(20)} == {"code"}


def test_nobody_gets_a_request_when_all_weights_are_zero() -> None:
    config = {"TargetGroups": [{"TargetGroupArn": "a", "Weight": 0}]}
    assert choose_group({"ForwardConfig": config}, {}, "rule") == ""


def test_a_session_ends_with_its_time_and_belongs_to_its_owner() -> None:
    _, headers, _ = keep((200, {}, b""), "AWSALB", "group", "i-1", 100)
    cookie = {"cookie": headers["set-cookie"][0].partition(";")[0]}
    assert stays_with(cookie, "AWSALB", "group") == "i-1"
    assert stays_with(cookie, "AWSALB", "another") is None
    _, headers, _ = keep((200, {"set-cookie": "own=1"}, b""), "AWSALB", "group", "i-1", -1)
    assert headers["set-cookie"][0] == "own=1"
    assert stays_with({"cookie": headers["set-cookie"][1]}, "AWSALB", "group") is None


def test_a_path_that_no_rewrite_matches_stays() -> None:
    rewrites = [{"Regex": "^/a/(.*)$", "Replace": "/b/$1"}]
    transforms = [{"Type": "url-rewrite", "UrlRewriteConfig": {"Rewrites": rewrites}}]
    assert rewritten("/a/x", transforms) == "/b/x"
    assert rewritten("/c/x", transforms) == "/c/x"
