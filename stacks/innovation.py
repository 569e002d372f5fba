"""What an innovation, a claim and a node of the map are. Standard library only: quick to import."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

STACKS = Path(__file__).parent

Status = Literal["real", "planned"]
Source = Literal["computed", "measured", "vendor"]


@dataclass(frozen=True)
class Claim:
    """A figure of the map and where it comes from.

    Args:
        figure: The words of the map, such as `75% Memory Savings`.
        source: Computed by the planner, measured by a benchmark, or the vendor's own.
        reference: The command that computes or measures it, or the vendor's page.
    """

    figure: str
    source: Source
    reference: str


def computed(figure: str, command: str) -> Claim:
    """Return a claim that `command` computes."""
    return Claim(figure, "computed", command)


def measured(figure: str, command: str) -> Claim:
    """Return a claim that `command` measures."""
    return Claim(figure, "measured", command)


def vendor(figure: str, page: str) -> Claim:
    """Return a claim that is the vendor's; `page` is where the vendor makes it."""
    return Claim(figure, "vendor", page)


def stack_name(environment: str, stack: str) -> str:
    """Return CloudFormation's name of a stack, which takes no underscore."""
    return f"{environment}-{stack.replace('_', '-')}"


def weights_parameter(environment: str, slug: str) -> str:
    """Return the name of the SSM parameter that says where an innovation's weights are."""
    return f"/isomorph/{environment}/{slug}/weights"


def status_of(stack: str) -> Status:
    """Return `real` if the stack with this id, such as `moe-training`, is there to deploy."""
    return "real" if (STACKS / f"{stack.replace('-', '_')}.py").is_file() else "planned"


@dataclass(frozen=True)
class FlowNode:
    """A box of the flowchart.

    Args:
        id: Its id in the diagram, such as `MoE_AWS`.
        lines: The lines of its label.
        by: Id of the stack that keeps the promise; for a branch, the innovation's slug.
        claim: The figure in its label, if it has one.
    """

    id: str
    lines: tuple[str, ...]
    by: str
    claim: Claim | None = None


@dataclass(frozen=True)
class Branch:
    """An innovation in the flowchart, with the services that it maps to."""

    node: FlowNode
    fill: str
    targets: tuple[FlowNode, ...]
    impact: Claim | str


@dataclass(frozen=True)
class Topic:
    """A node of the mind map, with everything under it.

    Args:
        label: Its text, or its claim's figure.
        by: Id of the stack that keeps the promise. None for a heading.
        claim: The figure in its label, if it has one.
        children: What is under it.
    """

    label: str
    by: str | None = None
    claim: Claim | None = None
    children: tuple["Topic", ...] = ()

    def walk(self, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], "Topic"]]:
        """Yield every topic from here down, each with the labels on the way to it."""
        path = (*above, self.label)
        yield path, self
        for child in self.children:
            yield from child.walk(path)


@dataclass(frozen=True)
class Innovation:
    """One idea of the map. The slug is the key in YAML, in model_code/ and on the command line.

    Args:
        slug: Its only key.
        title: Its name in a sentence.
        runs_on: Where it runs, for tables.
        because: Why there, for tables.
        stacks: Ids of its stacks; left out, one stack named as the slug.
        serves_weights: Whether its nodes fetch a model's weights from the model bucket.
        branch: Its part of the flowchart, if it has one.
    """

    slug: str
    title: str
    runs_on: str
    because: str
    stacks: tuple[str, ...] = ()
    serves_weights: bool = False
    branch: Branch | None = None

    @property
    def stack_ids(self) -> tuple[str, ...]:
        """The ids of its stacks, there or planned."""
        return self.stacks or (self.slug,)

    def stacks_of(self, section: Mapping[str, Any]) -> list[str]:
        """Return the ids of the stacks that a section of an environment file asks for.

        A stack named SLUG-PART is there if the section has PART; `InnovationSettings.wants` says
        the same of checked settings.
        """
        parts = {stack: stack.removeprefix(f"{self.slug}-") for stack in self.stack_ids}
        return [stack for stack, part in parts.items() if part == stack or section.get(part)]

    @property
    def status(self) -> Status:
        """`real` as soon as one of its stacks can be deployed."""
        return "real" if "real" in map(status_of, self.stack_ids) else "planned"
