"""THE REGISTRY: which settings, stack and constructs belong to which innovation of the map.

The map itself, with its planned innovations, is data in stacks/map_data.py. What is listed here
can be deployed. Listed by hand: every editor finds it, it keeps an order, and it fails at import.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aws_cdk import Stack
from constructs import Construct

from config import (
    EnvironmentConfig,
    InnovationSettings,
    Override,
    innovation_settings,
    load_environments,
)
from constructs_lib import (
    DecodeFleet,
    ExpertPools,
    HyperPodCluster,
    InferentiaEndpoint,
    LatentCache,
    WindowFunction,
)
from stacks.gqa import GqaSettings, GqaStack
from stacks.innovation import Innovation
from stacks.map_data import GQA, INNOVATIONS, MLA, MOE, SLIDING_WINDOW
from stacks.mla import MlaSettings, MlaStack
from stacks.moe import MoeSettings
from stacks.moe_serving import MoeServingStack
from stacks.moe_training import MoeTrainingStack
from stacks.sliding_window import SlidingWindowSettings, SlidingWindowStack

# Called with scope, id, settings and base.
StackClass = Callable[..., Stack]


@dataclass(frozen=True)
class Deployable:
    """An innovation that has stacks.

    Args:
        innovation: What the map says of it.
        settings: Model of its section in an environment file.
        stacks: Its stacks, by id.
        constructs: What its stacks are built of, for readers; a test looks for them.
    """

    innovation: Innovation
    settings: type[InnovationSettings]
    stacks: dict[str, StackClass]
    constructs: tuple[type[Construct], ...]


DEPLOYABLE: tuple[Deployable, ...] = (
    Deployable(
        MOE,
        MoeSettings,
        stacks={"moe-training": MoeTrainingStack, "moe-serving": MoeServingStack},
        constructs=(HyperPodCluster, InferentiaEndpoint, ExpertPools),
    ),
    Deployable(MLA, MlaSettings, stacks={"mla": MlaStack}, constructs=(LatentCache, DecodeFleet)),
    Deployable(GQA, GqaSettings, stacks={"gqa": GqaStack}, constructs=(DecodeFleet,)),
    Deployable(
        SLIDING_WINDOW,
        SlidingWindowSettings,
        stacks={"sliding_window": SlidingWindowStack},
        constructs=(DecodeFleet, WindowFunction),
    ),
)

REGISTRY: dict[str, Deployable] = {each.innovation.slug: each for each in DEPLOYABLE}

# What each section is checked against; None where an innovation is planned.
SETTINGS: dict[str, type[InnovationSettings] | None] = {
    innovation.slug: REGISTRY[innovation.slug].settings if innovation.slug in REGISTRY else None
    for innovation in INNOVATIONS
}


def environments(
    only: str | None = None, overrides: tuple[Override, ...] = ()
) -> list[EnvironmentConfig]:
    """Return the environments, with the settings of their innovations checked as well."""
    return load_environments(only, settings=SETTINGS, overrides=overrides)


def selected(environment: EnvironmentConfig) -> Iterator[tuple[Deployable, InnovationSettings]]:
    """Yield what `environment` switches on, in the order of the registry, with its settings."""
    on = innovation_settings(environment, SETTINGS)
    for slug, deployable in REGISTRY.items():
        if slug in on:
            yield deployable, on[slug]
