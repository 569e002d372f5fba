import re
import subprocess
import sys

import pytest

from bench import BENCHES
from stacks.innovation import Claim, Innovation, Topic, status_of
from stacks.map_data import INNOVATIONS, INSIGHTS, status
from stacks.mind_map import MIND_MAP

TOPICS = [topic for _, topic in MIND_MAP.walk()]
BRANCHES = [each.branch for each in INNOVATIONS if each.branch]
NODES = [node for branch in BRANCHES for node in (branch.node, *branch.targets)]
CLAIMS = [
    each
    for each in (
        *(node.claim for node in NODES),
        *(topic.claim for topic in TOPICS),
        *(branch.impact for branch in BRANCHES),
        *INSIGHTS,
    )
    if isinstance(each, Claim)
]
FIGURE = re.compile(r"(^| )\d")
NAMES_WITH_NUMBERS = {"Gemma 3 Architecture", "OLMo 2 Innovation"}


def test_the_map_has_five_branches_and_seventy_topics():
    assert [branch.node.id for branch in BRANCHES] == ["MoE", "MLA", "GQA", "SWA", "AN"]
    assert [len(branch.targets) for branch in BRANCHES] == [2] * 5
    assert len(TOPICS) == 70


def test_no_two_topics_are_in_the_same_place():
    paths = [path for path, _ in MIND_MAP.walk()]
    assert len(set(paths)) == len(paths)


def test_every_promise_is_kept_by_a_stack_that_is_there_or_planned():
    known = {"foundation"} | {each.slug for each in INNOVATIONS}
    known |= {stack for each in INNOVATIONS for stack in each.stack_ids}
    kept = {node.by for node in NODES} | {topic.by for topic in TOPICS if topic.by}
    assert kept <= known


def test_every_topic_without_anything_below_it_is_a_promise():
    assert [topic.label for topic in TOPICS if not topic.children and not topic.by] == []


@pytest.mark.parametrize("topic", TOPICS, ids=lambda each: each.label)
def test_every_figure_of_the_mind_map_is_a_claim(topic):
    has_figure = bool(FIGURE.search(topic.label)) and topic.label not in NAMES_WITH_NUMBERS
    assert has_figure == (topic.claim is not None)


@pytest.mark.parametrize("node", NODES, ids=lambda each: each.id)
def test_every_figure_of_the_flowchart_is_a_claim(node):
    has_figure = any("%" in line for line in node.lines)
    assert has_figure == (node.claim is not None)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda each: each.figure)
def test_a_claim_names_the_command_or_the_page(claim):
    if claim.source == "vendor":
        assert claim.reference.startswith("https://aws.amazon.com/")
    else:
        pattern = rf"isomorph (bench ({'|'.join(BENCHES)})|plan [a-z0-9-]+)"
        assert re.fullmatch(pattern, claim.reference)


def test_a_stack_is_real_when_its_file_is_there():
    assert status_of("gqa") == "real"
    assert status_of("foundation") == "real"
    assert status_of("moe-training") == "real"
    assert status_of("normalization") == "planned"


def test_a_slug_is_real_as_soon_as_one_of_its_stacks_is():
    assert status("gqa") == "real"
    assert status("normalization") == "planned"
    half = Innovation(slug="x", title="", runs_on="", because="", stacks=("later", "gqa"))
    assert half.status == "real"


def test_a_topic_walks_in_the_order_of_the_diagram():
    tree = Topic("a", children=(Topic("b", children=(Topic("c"),)), Topic("d")))
    assert [path for path, _ in tree.walk()] == [
        ("a",), ("a", "b"), ("a", "b", "c"), ("a", "d"),
    ]  # fmt: skip


def test_reading_the_map_does_not_import_cdk():
    code = "import sys, stacks.map_data, stacks.mind_map; print('aws_cdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
