"""The map holds every node and figure that was promised, in today's state."""

import re
from pathlib import Path

import pytest

from isomorph import blocks, mermaid, themap
from isomorph.errors import UserError
from stacks.innovation import Claim, FlowNode
from stacks.map_data import INNOVATIONS, START
from stacks.mind_map import MIND_MAP

README = Path(__file__).resolve().parents[2] / "README.md"

# Written down here a second time on purpose: a node that is dropped from the registry is missed.
FLOW_NODES = [
    *("Start", "MoE", "MLA", "GQA", "SWA", "AN", "MoE_AWS", "MoE_INF", "MLA_AWS", "MLA_MEM"),
    *("GQA_AWS", "GQA_SCALE", "SWA_AWS", "SWA_EDGE", "AN_AWS", "AN_TUNE"),
]
FLOW_FIGURES = [
    "85% parameter reduction",
    "25-40% computation reduction",
    "75% memory savings",
    "60-85% inference cost reduction",
]
MIND_MAP_FIGURES = [
    "25-40% Computation Reduction",
    "75% Memory Savings",
    "671B Total Parameters",
    "37B Active Parameters",
    "85% Inference Cost Reduction",
    "256 Experts Total",
    "9 Active per Token",
    "16:4 Sparsity Pattern",
    "30-40% Cost Advantage",
    "83 Petaflops Dense",
    "4x Throughput",
    "50% Better Perf/Watt",
    "72 Blackwell GPUs",
    "360 Petaflops",
    "3200 Gbps Networking",
    "35% Lower Latency",
    "100+ Foundation Models",
    "500% Faster Inference",
    "75% Cost Reduction",
    "Caching 85% Latency Reduction",
    "Intelligent Routing 30% Savings",
]
MIND_MAP_NODES = 70


def test_the_flowchart_has_every_node_once() -> None:
    nodes = re.findall(r"^    (\w+)[\[{]", themap.flowchart(), re.MULTILINE)
    assert sorted(nodes) == sorted(FLOW_NODES)


def test_every_branch_leads_from_the_start_to_its_services() -> None:
    edges = re.findall(r"(\w+) --> (\w+)", themap.flowchart())
    assert len(edges) == len(FLOW_NODES) - 1
    assert {head for head, _ in edges} == {"Start", "MoE", "MLA", "GQA", "SWA", "AN"}


@pytest.mark.parametrize("figure", FLOW_FIGURES)
def test_the_flowchart_and_its_sentences_hold_the_figure(figure: str) -> None:
    assert figure in themap.markdown()


@pytest.mark.parametrize("figure", MIND_MAP_FIGURES)
def test_the_mind_map_holds_the_figure_and_says_what_stands_behind_it(figure: str) -> None:
    [line] = [line for line in themap.mind_map().splitlines() if f'"{figure}<' in line]
    assert re.search(r"vendor's figure|(computed|measured) by isomorph|to be (comp|meas)", line)


def test_the_mind_map_has_every_node() -> None:
    assert len(list(MIND_MAP.walk())) == MIND_MAP_NODES


def test_a_figure_counts_as_measured_only_when_its_bench_is_there() -> None:
    claim = Claim("2x", "measured", "isomorph bench no_such_bench")
    assert mermaid.proof(claim, themap.provable) == "to be measured"
    assert mermaid.proof(claim, lambda _: True) == "measured by isomorph bench no_such_bench"


def test_a_planned_node_is_drawn_as_planned() -> None:
    drawn = mermaid.flowchart(
        START, INNOVATIONS, status=lambda by: "planned", provable=lambda _: False
    )
    assert re.search(r"class .*GQA_SCALE.* planned", drawn)


def test_quotes_cannot_break_a_label() -> None:
    node = FlowNode("X", ('say "hi"',), by="gqa")
    drawn = mermaid.flowchart(node, [], status=lambda by: "real", provable=lambda _: False)
    assert "X[\"say 'hi'\"]" in drawn


def test_the_readme_shows_the_map_as_it_is_today() -> None:
    text = README.read_text()
    renewed = blocks.renew(text, {"map": themap.markdown(), "innovations": themap.table()})
    assert renewed == text, "run: isomorph map --write README.md"


@pytest.mark.parametrize("text", ["", "<!-- x:end -->\n<!-- x:begin -->\n"])
def test_fails_when_a_marker_is_missing_or_out_of_order(text: str) -> None:
    with pytest.raises(UserError, match="needs <!-- x:begin --> and <!-- x:end --> once, in order"):
        blocks.renew(text, {"x": "content\n"})
