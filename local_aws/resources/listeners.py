"""Listeners and their rules with what the control plane drops: shares among target groups."""

from collections.abc import Callable, Mapping
from typing import Any

from ministack.services import alb
from ministack.services.cloudformation import provisioners

from local_aws.resources.table import Aws, Made, Properties, Resource, Type

LISTENER = "AWS::ElasticLoadBalancingV2::Listener"
RULE = "AWS::ElasticLoadBalancingV2::ListenerRule"
_LISTENER = frozenset(
    {
        *("Certificates", "DefaultActions", "ListenerAttributes", "LoadBalancerArn", "Port"),
        *("Protocol", "SslPolicy", "Tags"),
    }
)
_RULE = frozenset({"Actions", "Conditions", "ListenerArn", "Priority", "Tags", "Transforms"})
_ACTION = {"FixedResponseConfig", "ForwardConfig", "Order", "RedirectConfig", "TargetGroupArn",
           "Type"}  # fmt: skip
_PLAYED = ("fixed-response", "forward", "redirect")
_FIELDS = ("host-header", "http-header", "http-request-method", "path-pattern")
_TRANSFORMS = ("url-rewrite",)
_Record = dict[str, Any]


def _check(actions: list[Mapping[str, Any]], kind: str) -> None:
    """Refuse what would be dropped, or not be played."""
    for action in actions:
        if action["Type"] not in _PLAYED:
            raise ValueError(f"{kind}: an action of type {action['Type']} is not played here")
        if unplayed := sorted(set(action) - _ACTION):
            raise ValueError(f"{kind}: {', '.join(unplayed)} of an action is not played here")


def _complete(records: list[_Record], actions: list[Mapping[str, Any]], balancer: str) -> None:
    """Put into the control plane's records how requests are shared among target groups."""
    for record, action in zip(records, actions, strict=True):
        shares = action.get("ForwardConfig", {}).get("TargetGroups", [])
        for group in [each["TargetGroupArn"] for each in shares] or [record.get("TargetGroupArn")]:
            if group in alb._tgs and balancer not in alb._tgs[group]["LoadBalancerArns"]:
                alb._tgs[group]["LoadBalancerArns"].append(balancer)
        if shares:
            record["ForwardConfig"] = action["ForwardConfig"]


def _listener(make: Callable[[Resource], tuple[str, dict[str, str]]]) -> Callable[..., Made]:
    def made(resource: Resource) -> Made:
        actions = list(resource.properties["DefaultActions"])
        _check(actions, LISTENER)
        arn, attributes = make(resource)
        balancer = resource.properties["LoadBalancerArn"]
        # The default rule holds the same records.
        _complete(alb._listeners[arn]["DefaultActions"], actions, balancer)
        return Made(arn, attributes)

    return made


def _rule(make: Callable[[Resource], tuple[str, dict[str, str]]]) -> Callable[..., Made]:
    def made(resource: Resource) -> Made:
        properties = resource.properties
        actions = list(properties["Actions"])
        _check(actions, RULE)
        for condition in properties["Conditions"]:
            if condition.get("Field") not in _FIELDS:
                raise ValueError(f"{RULE}: {condition.get('Field')} of a condition is not played")
        for transform in properties.get("Transforms", []):
            if transform["Type"] not in _TRANSFORMS:
                raise ValueError(f"{RULE}: the transform {transform['Type']} is not played here")
        arn, attributes = make(resource)
        rule = alb._rules[arn]
        alb._tags[arn] = provisioners._elbv2_tags(properties.get("Tags"))
        balancer = alb._listeners[rule["ListenerArn"]]["LoadBalancerArn"]
        _complete(rule["Actions"], actions, balancer)
        return Made(arn, {**attributes, "IsDefault": "false"})

    return made


def _create_listener(_: Aws, resource: Resource) -> Made:
    make = provisioners._elbv2_listener_create
    return _listener(lambda r: make(r.logical_id, r.properties, r.stack))(resource)


def _update_listener(_: Aws, arn: str, resource: Resource) -> Made:
    change = provisioners._elbv2_listener_update
    return _listener(lambda r: change(arn, r.before, r.properties, r.stack, r.logical_id))(resource)


def _delete_listener(_: Aws, arn: str, properties: Properties) -> None:
    provisioners._elbv2_listener_delete(arn, properties)


def _create_rule(_: Aws, resource: Resource) -> Made:
    make = provisioners._elbv2_listener_rule_create
    return _rule(lambda r: make(r.logical_id, r.properties, r.stack))(resource)


def _update_rule(_: Aws, arn: str, resource: Resource) -> Made:
    change = provisioners._elbv2_listener_rule_update
    return _rule(lambda r: change(arn, r.before, r.properties, r.stack, r.logical_id))(resource)


def _delete_rule(_: Aws, arn: str, properties: Properties) -> None:
    provisioners._elbv2_listener_rule_delete(arn, properties)


def show_shares() -> None:
    """Let describe calls show how an action shares requests."""
    plain = alb._action_xml

    def with_shares(action: _Record) -> str:
        config = action.get("ForwardConfig")
        if not config:
            return str(plain(action))
        groups = "".join(
            f"<member><TargetGroupArn>{one['TargetGroupArn']}</TargetGroupArn>"
            f"<Weight>{one.get('Weight', 1)}</Weight></member>"
            for one in config["TargetGroups"]
        )
        session = config.get("TargetGroupStickinessConfig") or {}
        kept = "".join(
            f"<{name}>{str(session[name]).lower()}</{name}>"
            for name in ("Enabled", "DurationSeconds")
            if name in session
        )
        shares = (
            f"<ForwardConfig><TargetGroups>{groups}</TargetGroups>"
            f"<TargetGroupStickinessConfig>{kept}</TargetGroupStickinessConfig></ForwardConfig>"
        )
        # An action with several groups names none by itself.
        one = len(config["TargetGroups"]) == 1
        shown = {key: value for key, value in action.items() if one or key != "TargetGroupArn"}
        return str(plain(shown)).replace("</member>", f"{shares}</member>")

    alb._action_xml = with_shares


LISTENERS = (
    Type(LISTENER, _LISTENER, _create_listener, _delete_listener, _update_listener),
    Type(RULE, _RULE, _create_rule, _delete_rule, _update_rule),
)
