"""Puts the sizes of a plan into an environment's YAML, its comments and other keys kept."""

import io
import os
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import PlanError
from planner.planning import Plan


@dataclass(frozen=True, kw_only=True)
class Written:
    """One key that `write` set. `before` is None where it was not there."""

    key: str
    before: Any
    after: Any


def sections(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return what the plan says in each innovation's section."""
    found: dict[str, dict[str, Any]] = {}
    for row in plan.placements:
        if row.settings:
            found.setdefault(row.slug, {}).update(row.settings)
    return found


def write(
    plan: Plan, yaml_path: str | Path, *, slugs: Collection[str] | None = None
) -> list[Written]:
    """Write the plan's sizes into an environment's file, whole or not at all.

    Args:
        plan: What to write.
        yaml_path: The file, which must be there.
        slugs: The innovations to write; left out: all that the plan sizes. A model that the section
            names already stays: it is the name of weights in the bucket.
    """
    from ruamel.yaml import YAML  # slow to load, and nothing else of a plan needs it
    from ruamel.yaml.error import YAMLError

    path = Path(yaml_path)
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    try:
        document = yaml.load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise PlanError(f"{path}: cannot be read: {reason}") from error
    except YAMLError as error:
        raise PlanError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(document, dict):
        raise PlanError(f"{path}: an environment holds keys and values")
    chosen = {k: v for k, v in sections(plan).items() if slugs is None or k in slugs}
    if not chosen:
        raise PlanError(f"{path}: the plan sizes nothing to write for {plan.architecture.name}")
    changes = _merge(path, document, chosen)
    stream = io.StringIO()
    yaml.dump(document, stream)
    _replace(path, stream.getvalue())
    return changes


def _merge(path: Path, document: Any, chosen: dict[str, dict[str, Any]]) -> list[Written]:
    if document.get("innovations") is None:
        document["innovations"] = {}
    innovations = document["innovations"]
    if not isinstance(innovations, dict):
        raise PlanError(f"{path}: innovations holds a section for each slug")
    changes = []
    for slug, settings in chosen.items():
        if innovations.get(slug) is None:
            innovations[slug] = {}
        section = innovations[slug]
        if not isinstance(section, dict):
            raise PlanError(f"{path}: innovations.{slug} holds keys and values")
        changes += _put(section, settings, f"innovations.{slug}")
    return changes


def _put(section: Any, settings: dict[str, Any], where: str) -> list[Written]:
    """Set keys of a section, and in sections inside of it; others of them stay."""
    changes = []
    for key, after in settings.items():
        before = section.get(key)
        if isinstance(after, dict) and isinstance(before, dict):
            changes += _put(before, after, f"{where}.{key}")
        elif before != after and not (key == "model" and before is not None):
            section[key] = after
            changes.append(Written(key=f"{where}.{key}", before=before, after=after))
    return changes


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of the old text or all of the new."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, path.stat().st_mode)
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise PlanError(f"{path}: cannot be written: {error.strerror}") from error
