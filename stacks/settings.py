"""Which settings belong to which innovation of the map, and what environments say with them.

Without the CDK: commands that synthesize nothing start in a quarter of the time.
"""

from collections.abc import Iterator

from config import (
    EnvironmentConfig,
    InnovationSettings,
    Override,
    innovation_settings,
    load_environments,
)
from stacks.gqa_settings import GqaSettings
from stacks.innovation import Innovation
from stacks.map_data import GQA, INNOVATIONS, MLA, MOE, SLIDING_WINDOW
from stacks.mla_settings import MlaSettings
from stacks.moe import MoeSettings
from stacks.sliding_window_settings import SlidingWindowSettings

_REAL: dict[str, type[InnovationSettings]] = {
    MOE.slug: MoeSettings,
    MLA.slug: MlaSettings,
    GQA.slug: GqaSettings,
    SLIDING_WINDOW.slug: SlidingWindowSettings,
}

# What each section is checked against; None where an innovation is planned.
SETTINGS: dict[str, type[InnovationSettings] | None] = {
    innovation.slug: _REAL.get(innovation.slug) for innovation in INNOVATIONS
}


def environments(
    only: str | None = None, overrides: tuple[Override, ...] = ()
) -> list[EnvironmentConfig]:
    """Return the environments, with the settings of their innovations checked as well."""
    return load_environments(only, settings=SETTINGS, overrides=overrides)


def selected(environment: EnvironmentConfig) -> Iterator[tuple[Innovation, InnovationSettings]]:
    """Yield what `environment` switches on, in the order of the map, with its settings."""
    on = innovation_settings(environment, SETTINGS)
    for innovation in INNOVATIONS:
        if innovation.slug in on:
            yield innovation, on[innovation.slug]
