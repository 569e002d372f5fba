"""Which changes of a template replace a resource, and which of those would lose what it holds."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from planner.catalogue import HERE
from planner.errors import PlanError

# Create-only by the service, though the schema does not say so: an edit replaces the group.
ALSO_CREATE_ONLY: Mapping[str, tuple[str, ...]] = {
    "AWS::SageMaker::Cluster": (
        "InstanceGroups/*/InstanceType",
        "InstanceGroups/*/ExecutionRole",
        "InstanceGroups/*/ThreadsPerCore",
    ),
}
# Beyond cfn-lint's list: what else of ours holds something that cannot be made again.
ALSO_STATEFUL = frozenset(
    {
        "AWS::ElastiCache::ReplicationGroup",
        "AWS::ElastiCache::ServerlessCache",
        "AWS::FSx::FileSystem",
        "AWS::KMS::Key",
        "AWS::S3Vectors::Index",
        "AWS::S3Vectors::VectorBucket",
        "AWS::SageMaker::Cluster",
    }
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One property, or one whole resource, that a new template changes.

    Args:
        path: The property, as in the schema; empty for a resource that comes or goes.
        effect: update, replace, create or delete.
        stateful: Whether the resource holds data that a replacement loses.
        retained: Whether the old template keeps the resource's data when it goes.
    """

    logical_id: str
    type: str
    path: str
    before: Any
    after: Any
    effect: Literal["update", "replace", "create", "delete"]
    stateful: bool
    retained: bool = False

    @property
    def loses_data(self) -> bool:
        """Whether this should be refused unless it was asked for by name."""
        return self.stateful and self.effect in ("replace", "delete") and not self.retained

    def __str__(self) -> str:
        """Return the change on one line."""
        mark = " (holds data)" if self.loses_data else ""
        if self.effect in ("create", "delete"):
            return f"{self.effect} {self.logical_id} ({self.type}){mark}"
        values = f"{_short(self.before)} -> {_short(self.after)}"
        return f"{self.effect} {self.logical_id} ({self.type}): {self.path}: {values}{mark}"


@cache
def _table() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((HERE / "create_only.json").read_text(encoding="utf-8"))
    return data


def create_only(kind: str) -> tuple[str, ...]:
    """Return the paths of a type that cannot change without replacing the resource."""
    return (*_table()["types"].get(kind, ()), *ALSO_CREATE_ONLY.get(kind, ()))


def stateful(kind: str) -> bool:
    """Return whether resources of a type hold data."""
    return kind in ALSO_STATEFUL or kind in _table()["stateful"]


def diff(old_template: Mapping[str, Any], new_template: Mapping[str, Any]) -> list[Change]:
    """Return what the new template changes, resource by resource, in the order of their names."""
    old, new = _resources(old_template, "old"), _resources(new_template, "new")
    changes: list[Change] = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before is None:
            changes.append(_whole(name, after, "create"))
        elif after is None:
            changes.append(_whole(name, before, "delete"))
        elif before.get("Type") != after.get("Type"):
            changes += [_whole(name, before, "delete"), _whole(name, after, "create")]
        else:
            changes += _changed(name, before, after)
    return changes


def refuse(changes: list[Change], *, allow: bool = False) -> None:
    """Refuse changes that lose data, unless they are allowed."""
    lost = [change for change in changes if change.loses_data]
    if lost and not allow:
        names = "; ".join(str(change) for change in lost)
        raise PlanError(f"would lose data: {names}; add --allow-replace if that is meant")


def _resources(template: Mapping[str, Any], which: str) -> Mapping[str, Any]:
    found = template.get("Resources", {})
    if not isinstance(found, Mapping) or not all(isinstance(r, Mapping) for r in found.values()):
        raise PlanError(f"the {which} template's Resources is not a map of resources")
    return found


def _whole(name: str, resource: Any, effect: Literal["create", "delete"]) -> Change:
    kind = str(resource.get("Type", "?"))
    return Change(
        logical_id=name,
        type=kind,
        path="",
        before=None,
        after=None,
        effect=effect,
        stateful=stateful(kind),
        retained=resource.get("DeletionPolicy") in ("Retain", "RetainExceptOnCreate"),
    )


def _changed(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    kind = str(before.get("Type", "?"))
    paths = create_only(kind)
    retained = before.get("UpdateReplacePolicy") in ("Retain", "Snapshot")
    for path, old, new in _leaves(before.get("Properties", {}), after.get("Properties", {}), ()):
        replaces = any(_covers(only.split("/"), path) for only in paths)
        yield Change(
            logical_id=name,
            type=kind,
            path="/".join(path),
            before=old,
            after=new,
            effect="replace" if replaces else "update",
            stateful=stateful(kind),
            retained=retained,
        )


def _leaves(
    old: Any, new: Any, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if old == new:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}, key=str):
            yield from _leaves(old.get(key), new.get(key), (*path, str(key)))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from _leaves(left, right, (*path, str(index)))
    else:
        yield path, old, new


def _covers(only: list[str], path: tuple[str, ...]) -> bool:
    """Return whether a change at a path touches a create-only property, above or below it."""
    return all(
        want in ("*", "items") or want == have for want, have in zip(only, path, strict=False)
    ) and (len(path) >= len(only) or _is_container(only, path))


def _is_container(only: list[str], path: tuple[str, ...]) -> bool:
    # A change of the whole container (added, removed, or a list of another length) is reported as
    # an update: adding an instance group does not replace the groups that stay.
    return bool(path) and len(only) > len(path) and "*" not in only[len(path) :]


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
