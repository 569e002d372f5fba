"""The line chart: a curve is where its values say, and names cannot leave their text."""

from xml.etree import ElementTree

import pytest

from bench.chart import line_chart

SVG = "{http://www.w3.org/2000/svg}"


def parsed(document: str) -> ElementTree.Element:
    return ElementTree.fromstring(document)  # noqa: S314  we have just written it


def points(document: str) -> list[list[tuple[float, float]]]:
    lines = parsed(document).iter(f"{SVG}polyline")
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.get("points").split())]
        for line in lines
    ]


def test_each_curve_and_the_mean_of_its_group_are_drawn() -> None:
    document = line_chart("t", {"a": [[4, 2], [2, 0]], "b": [[4, 4]]}, across="x", up="y")
    first, second, mean, only, its_mean = points(document)
    assert [x for x, _ in first] == [56, 704]
    assert [y for _, y in first] == [44, 200]  # 4 is at the top, 2 in the middle
    assert [y for _, y in second] == [200, 356]
    assert [y for _, y in mean] == [122, 278]
    assert only == its_mean


def test_a_flat_curve_has_a_scale() -> None:
    document = line_chart("t", {"a": [[1, 1]]}, across="x", up="y")
    assert points(document)[0] == [(56, 356), (704, 356)]


def test_names_are_text() -> None:
    document = line_chart("<script>&", {"</svg>": [[1, 2]]}, across="<x>", up="&")
    texts = [each.text for each in parsed(document).iter(f"{SVG}text")]
    assert {"<script>&", "</svg>", "<x>", "&"} <= {*texts}


@pytest.mark.parametrize("curves", [[], [[]], [[1, 2], [1]]])
def test_curves_that_do_not_fit_each_other_are_refused(curves: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="a chart takes curves of one length, with a value"):
        line_chart("t", {"a": curves}, across="x", up="y")
