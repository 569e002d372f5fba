"""The map as it stands today: the registry's nodes, with what is real and what can be proven."""

from isomorph import mermaid
from stacks.innovation import Claim, status_of
from stacks.map_data import INNOVATIONS, INSIGHTS, START
from stacks.mind_map import MIND_MAP


def status(by: str) -> str:
    """Return whether a stack, or any stack of an innovation, can be deployed."""
    for innovation in INNOVATIONS:
        if by == innovation.slug:
            return innovation.status
    return status_of(by)


def provable(reference: str) -> bool:
    """Return whether the command that a claim names is there: `isomorph bench gqa`."""
    from bench import BENCHES
    from isomorph.__main__ import COMMANDS

    _, command, *arguments = reference.split()
    if command == "bench":
        return set(arguments) <= set(BENCHES)
    return command in COMMANDS


def flowchart() -> str:
    """Return the flowchart in Mermaid."""
    return mermaid.flowchart(START, INNOVATIONS, status=status, provable=provable)


def mind_map() -> str:
    """Return the mind map in Mermaid."""
    return mermaid.mind_map(MIND_MAP, status=status, provable=provable)


def _sentence(text: Claim | str) -> str:
    if isinstance(text, str):
        return text
    return f"{text.figure} ({mermaid.proof(text, provable)})"


def markdown() -> str:
    """Return both diagrams and the sentences that go with them, as the README shows them."""
    impact = [
        f"- **{innovation.title}**: {_sentence(innovation.branch.impact)}"
        for innovation in INNOVATIONS
        if innovation.branch
    ]
    parts = [
        f"```mermaid\n{flowchart()}```",
        "\n".join(impact),
        f"```mermaid\n{mind_map()}```",
        "\n".join(f"- {_sentence(insight)}" for insight in INSIGHTS),
    ]
    return "\n\n".join(parts) + "\n"


def table() -> str:
    """Return the innovations as a Markdown table, as the README shows it."""
    rows = ["| Innovation | Slug | Runs on | Because | Status |", "| --- | --- | --- | --- | --- |"]
    rows += [
        f"| {row.title} | `{row.slug}` | {row.runs_on} | {row.because} | {row.status} |"
        for row in INNOVATIONS
    ]
    return "\n".join(rows) + "\n"
