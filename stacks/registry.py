"""THE REGISTRY: which stacks and constructs belong to which innovation of the map.

The map itself, with its planned innovations, is data in stacks/map_data.py; stacks/settings.py says
which settings each has. What is listed here can be deployed. Listed by hand: every editor finds it,
it keeps an order, and it fails at import.
"""

from collections.abc import Callable
from dataclasses import dataclass

from aws_cdk import Stack
from constructs import Construct

from constructs_lib import (
    DecodeFleet,
    ExpertPools,
    HyperPodCluster,
    InferentiaEndpoint,
    LatentCache,
    WindowFunction,
)
from stacks.gqa import GqaStack
from stacks.innovation import Innovation
from stacks.map_data import GQA, MLA, MOE, SLIDING_WINDOW
from stacks.mla import MlaStack
from stacks.moe_serving import MoeServingStack
from stacks.moe_training import MoeTrainingStack
from stacks.sliding_window import SlidingWindowStack

# Called with scope, id, settings and base.
StackClass = Callable[..., Stack]


@dataclass(frozen=True)
class Deployable:
    """An innovation that has stacks.

    Args:
        innovation: What the map says of it.
        stacks: Its stacks, by id.
        constructs: What its stacks are built of, for readers; a test looks for them.
    """

    innovation: Innovation
    stacks: dict[str, StackClass]
    constructs: tuple[type[Construct], ...]


DEPLOYABLE: tuple[Deployable, ...] = (
    Deployable(
        MOE,
        stacks={"moe-training": MoeTrainingStack, "moe-serving": MoeServingStack},
        constructs=(HyperPodCluster, InferentiaEndpoint, ExpertPools),
    ),
    Deployable(MLA, stacks={"mla": MlaStack}, constructs=(LatentCache, DecodeFleet)),
    Deployable(GQA, stacks={"gqa": GqaStack}, constructs=(DecodeFleet,)),
    Deployable(
        SLIDING_WINDOW,
        stacks={"sliding_window": SlidingWindowStack},
        constructs=(DecodeFleet, WindowFunction),
    ),
)

REGISTRY: dict[str, Deployable] = {each.innovation.slug: each for each in DEPLOYABLE}
