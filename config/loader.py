"""Reads the environment files. The only module that reads YAML."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from config.errors import ConfigError, Finding, findings
from config.schema import EnvironmentConfig, InnovationSettings

FOLDER = Path(__file__).parent

# The settings model of each innovation by slug; None where there is no stack yet.
SettingsBySlug = Mapping[str, type[InnovationSettings] | None]


@dataclass(frozen=True)
class Override:
    """One setting that the command line gives in place of the file: `gqa.engine=native`."""

    slug: str
    key: str
    value: str

    @property
    def place(self) -> str:
        """Where the user wrote it."""
        return f"-c {self.slug}.{self.key}={self.value}"


def load_environments(
    only: str | None = None,
    *,
    settings: SettingsBySlug | None = None,
    overrides: tuple[Override, ...] = (),
    folder: Path = FOLDER,
) -> list[EnvironmentConfig]:
    """Return all environments, or the one named, after reporting everything that is wrong.

    Args:
        only: Name of one environment. Left out, all of them are read.
        settings: What the innovations' sections are checked against. Left out, they are not.
        overrides: Settings that replace those of the files, in every environment with that slug.
        folder: Where the YAML files are.
    """
    lines: list[str] = []
    environments = []
    unused = list(overrides)
    for path in _files(only, folder):
        place = f"{folder.name}/{path.name}"
        try:
            raw = _read(path, place)
        except ConfigError as error:
            lines.append(str(error))
            continue
        used = _apply(raw, overrides)
        unused = [override for override in unused if override not in used]
        environment, problems = _check(path.stem, raw, settings)
        origin = {f"innovations.{each.slug}.{each.key}": each.place for each in used}
        lines += [problem.at(origin.get(problem.key, place)) for problem in problems]
        if environment is not None:
            environments.append(environment)
    lines += [f"{each.place}: {_nowhere(each, only)}" for each in unused]
    if lines:
        raise ConfigError(*lines)
    return environments


def innovation_settings(
    environment: EnvironmentConfig, settings: SettingsBySlug
) -> dict[str, InnovationSettings]:
    """Return the checked settings of everything that `environment` switches on."""
    checked, problems = _check_innovations(environment.innovations, settings, environment)
    if problems:
        raise ConfigError(*(each.at(f"config/{environment.name}.yaml") for each in problems))
    return checked


def _parse_value(text: str) -> Any:
    """Read one value as YAML would: 8 is a number, true a boolean, other words text."""
    try:
        return _yaml().load(text)
    except YAMLError:
        return text


def _files(only: str | None, folder: Path) -> list[Path]:
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if only is None:
        return list(files.values())
    if only not in files:
        raise ConfigError(
            f"unknown environment {only!r}; {folder.name}/ has: {', '.join(files) or 'none'}"
        )
    return [files[only]]


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)


def _read(path: Path, place: str) -> dict[str, Any]:
    try:
        raw = _yaml().load(path)
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = str(error.problem or error.context).split("\n")[0]
        raise ConfigError(f"{place}{line}: not valid YAML: {problem}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{place}: not valid YAML: {detail}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{place}: must be keys and values, such as `region: us-east-1`")
    return raw


def _apply(raw: dict[str, Any], overrides: tuple[Override, ...]) -> list[Override]:
    """Put the overrides into `raw`; return those whose innovation is on in it."""
    on = raw.get("innovations")
    used = []
    for override in overrides:
        section = on.get(override.slug) if isinstance(on, dict) else None
        if isinstance(section, dict):
            section[override.key] = _parse_value(override.value)
            used.append(override)
    return used


def _nowhere(override: Override, only: str | None) -> str:
    where = f"config/{only}.yaml" if only else "any environment"
    return f"{override.slug!r} is not switched on in {where}; add it under `innovations`"


def _check(
    name: str, raw: dict[str, Any], settings: SettingsBySlug | None
) -> tuple[EnvironmentConfig | None, list[Finding]]:
    if "name" in raw:
        return None, [Finding("name", "unknown key; the file's name is the environment's name")]
    environment, problems = None, []
    try:
        environment = EnvironmentConfig(name=name, **{str(key): raw[key] for key in raw})
    except ValidationError as error:
        problems = findings(error, EnvironmentConfig)
    on = raw.get("innovations")
    if settings is not None and isinstance(on, dict):
        problems += _check_innovations(on, settings, environment)[1]
    return environment, problems


def _check_innovations(
    on: Mapping[str, Any], settings: SettingsBySlug, environment: EnvironmentConfig | None
) -> tuple[dict[str, InnovationSettings], list[Finding]]:
    checked: dict[str, InnovationSettings] = {}
    problems: list[Finding] = []
    real = ", ".join(slug for slug, model in settings.items() if model)
    for slug, section in on.items():
        key = f"innovations.{slug}"
        model = settings.get(slug)
        if slug not in settings:
            problems.append(Finding(key, f"no such innovation; allowed: {real}"))
        elif model is None:
            problems.append(Finding(key, f"planned, it has no stack yet; allowed: {real}"))
        elif isinstance(section, dict):
            try:
                checked[slug] = model.model_validate(section)
            except ValidationError as error:
                problems += findings(error, model, prefix=f"{key}.")
                continue
            if environment is not None:
                found = checked[slug].conflicts(environment)
                problems += [Finding(f"{key}.{name}", text) for name, text in found]
        elif environment is not None:  # otherwise the environment's own check reports it
            problems.append(Finding(key, f"got {section!r}; must be settings, at least `model`"))
    return checked, problems
