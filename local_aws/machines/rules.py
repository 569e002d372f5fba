"""What a deployed listener's rules do with a request: shares, sessions, rewritten paths.

The control plane finds the rule by its conditions. What it leaves out is here: forwarding to
several target groups by weight, callers that stay with a target or a group, rewriting of paths.
"""

import base64
import json
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any

from ministack.services import alb

TARGET_COOKIE, GROUP_COOKIE = "AWSALB", "AWSALBTG"
Action = Mapping[str, Any]
Response = tuple[int, dict[str, Any], Any]


def stays_with(headers: Mapping[str, str], cookie: str, owner: str) -> str | None:
    """Return whom a caller's cookie names, if the cookie is of `owner` and has not run out.

    Args:
        headers: Of the request, names in small letters.
        cookie: Its name.
        owner: The target group or the rule whose session it is.
    """
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(headers.get("cookie", ""))
        said = json.loads(base64.urlsafe_b64decode(jar[cookie].value))
        good = said["of"] == owner and said["until"] > time.time()
        return str(said["to"]) if good else None
    except (CookieError, KeyError, ValueError, TypeError):  # none, or not ours
        return None


def keep(response: Response, cookie: str, owner: str, chosen: str, seconds: float) -> Response:
    """Return the response with a cookie that brings the caller back to `chosen`."""
    status, headers, body = response
    said = {"of": owner, "to": chosen, "until": time.time() + seconds}
    value = base64.urlsafe_b64encode(json.dumps(said).encode()).decode()
    set_here = headers.get("set-cookie", [])
    others = [set_here] if isinstance(set_here, str) else list(set_here)
    own = f"{cookie}={value}; Max-Age={seconds:.0f}; Path=/"
    return status, {**headers, "set-cookie": [*others, own]}, body


def session_seconds(target_group: str) -> float | None:
    """Return how long callers stay with one target of a group, or None if they do not."""
    found = {one["Key"]: one["Value"] for one in alb._tg_attrs.get(target_group, [])}
    if str(found.get("stickiness.enabled", "false")).lower() != "true":
        return None
    return float(found.get("stickiness.lb_cookie.duration_seconds", 86400))


def choose_group(action: Action, headers: Mapping[str, str], owner: str) -> str:
    """Return the target group of a request: its session's, else by chance, as the weights say."""
    config = action["ForwardConfig"]
    weights = {one["TargetGroupArn"]: int(one.get("Weight", 1)) for one in config["TargetGroups"]}
    if _group_session(config) is not None:
        kept = stays_with(headers, GROUP_COOKIE, owner)
        if kept is not None and kept in weights:
            return kept
    groups, shares = list(weights), list(weights.values())
    if not any(shares):  # all zero: nobody gets any
        return ""
    [chosen] = random.choices(groups, shares)  # noqa: S311 - a share of traffic, not a secret
    return str(chosen)


def _group_session(config: Mapping[str, Any]) -> float | None:
    session = config.get("TargetGroupStickinessConfig") or {}
    if str(session.get("Enabled", "false")).lower() != "true":
        return None
    return float(session.get("DurationSeconds", 3600))


def rewritten(path: str, transforms: Sequence[Mapping[str, Any]]) -> str:
    """Return a path as the rule's transforms leave it; only the path is rewritten here."""
    for transform in transforms:
        if transform["Type"] != "url-rewrite":
            continue
        for rewrite in transform["UrlRewriteConfig"]["Rewrites"]:
            replacement = re.sub(r"\$(\d)", r"\\\1", rewrite["Replace"])
            found, count = re.subn(rewrite["Regex"], replacement, path, count=1)
            if count:
                return found
    return path


def _rule_of(action: Action) -> Mapping[str, Any]:
    for rule in alb._rules.values():
        if any(each is action for each in rule.get("Actions", [])):
            found: Mapping[str, Any] = rule
            return found
    return {}


def install() -> None:
    """Put this in the place of the control plane's own way to carry out an action."""
    execute: Callable[..., Any] = alb._execute_action

    async def carry_out(
        action: Action, method: str, path: str, headers: dict[str, str], *rest: Any
    ) -> Any:
        if str(action.get("Type", "")).lower() != "forward":
            return await execute(action, method, path, headers, *rest)
        rule = _rule_of(action)
        transforms = rule.get("Transforms") or []
        path = rewritten(path, transforms)
        body, query, raw_query, raw_path = (*rest, None, None)[:4]
        raw_path = rewritten(raw_path, transforms) if raw_path else None
        given = (method, path, headers, body, query, raw_query, raw_path)
        if "ForwardConfig" not in action:
            return await alb._forward_to_tg(action.get("TargetGroupArn", ""), *given)
        owner = str(rule.get("RuleArn", ""))
        chosen = choose_group(action, headers, owner)
        response = await alb._forward_to_tg(chosen, *given)
        seconds = _group_session(action["ForwardConfig"])
        if seconds is None or not chosen:
            return response
        return keep(response, GROUP_COOKIE, owner, chosen, seconds)

    alb._execute_action = carry_out
