"""Short words for templates."""

from typing import Any

Template = dict[str, Any]

ZONES = ("us-east-1a", "us-east-1b")


def ref(name: str) -> dict[str, str]:
    return {"Ref": name}


def attribute(name: str, of: str) -> dict[str, list[str]]:
    return {"Fn::GetAtt": [name, of]}


def resource(kind: str, /, *, after: str | None = None, **properties: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"Type": f"AWS::{kind}", "Properties": properties}
    return {**made, "DependsOn": after} if after else made


def policy(action: str, on: Any, **more: Any) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Action": action, "Resource": on, **more}
    return {"Version": "2012-10-17", "Statement": [statement]}


def assumed_by(service: str) -> dict[str, Any]:
    statement = {
        "Effect": "Allow",
        "Action": "sts:AssumeRole",
        "Principal": {"Service": f"{service}.amazonaws.com"},
    }
    return {"Version": "2012-10-17", "Statement": [statement]}
