"""Writes the registry's map as Mermaid diagrams, with what is real, planned and measured."""

from collections.abc import Callable, Iterable

from stacks.innovation import Claim, FlowNode, Innovation, Topic

Status = Callable[[str], str]  # of a stack id or a slug: `real` or `planned`
Provable = Callable[[str], bool]  # whether a claim's command is there to run

_PROVEN = {"computed": "computed by", "measured": "measured by"}
_AWAITED = {"computed": "to be computed", "measured": "to be measured"}


def proof(claim: Claim, provable: Provable) -> str:
    """Return what stands behind a figure: a command that prints it, the vendor, or nothing yet."""
    if claim.source == "vendor":
        return "vendor's figure"
    if provable(claim.reference):
        return f"{_PROVEN[claim.source]} {claim.reference}"
    return _AWAITED[claim.source]


def _text(lines: Iterable[str]) -> str:
    """Return lines as one quoted label."""
    return '"' + "<br/>".join(line.replace('"', "'") for line in lines) + '"'


def flowchart(
    start: FlowNode, innovations: Iterable[Innovation], *, status: Status, provable: Provable
) -> str:
    """Return the flowchart: from an innovation to the services that it maps to."""
    rows = ["flowchart TB", f"    {start.id}[{_text(start.lines)}]"]
    planned: list[str] = []
    styles: list[str] = []
    for innovation in innovations:
        branch = innovation.branch
        if branch is None:
            continue
        for node in (branch.node, *branch.targets):
            mark = innovation.status if node is branch.node else status(node.by)
            lines = [*node.lines, *([proof(node.claim, provable)] if node.claim else []), mark]
            box = "{%s}" if node is branch.node else "[%s]"
            rows.append(f"    {node.id}{box % _text(lines)}")
            if mark == "planned":
                planned.append(node.id)
        rows.append(f"    {start.id} --> {branch.node.id}")
        rows += [f"    {branch.node.id} --> {node.id}" for node in branch.targets]
        styles.append(f"    style {branch.node.id} fill:{branch.fill}")
    if planned:
        rows.append("    classDef planned stroke-dasharray: 5 5")
        rows.append(f"    class {','.join(planned)} planned")
    return "\n".join(rows + styles) + "\n"


def mind_map(root: Topic, *, status: Status, provable: Provable) -> str:
    """Return the mind map of the whole."""
    rows = ["mindmap"]
    for path, topic in root.walk():
        lines = [topic.label]
        if topic.claim:
            lines.append(proof(topic.claim, provable))
        if topic.by:
            lines.append(status(topic.by))
        shape = "root((%s))" if topic is root else "[%s]"
        rows.append("  " * len(path) + shape % _text(lines))
    return "\n".join(rows) + "\n"
