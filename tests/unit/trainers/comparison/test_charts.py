"""Charts: marks lie where their numbers say, names can be read."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from trainers.comparison.charts import BOTTOM, HEIGHT, LETTER, WIDTH, Axis, Curve, Point, curves, scatter

CROWD = [Point(f"model {number}, cached regions", 10 + number, 50 + number / 10, 1.0) for number in range(10)]


def boxes_of_names(svg: str, points: list[Point]) -> list[tuple[float, float, float, float]]:
    names = {each.name for each in points}
    found = [each for each in ElementTree.fromstring(svg).iter("text") if each.text in names]
    places = [(float(each.attrib["x"]), float(each.attrib["y"]), len(each.text or "")) for each in found]
    return [(left, top - 9, left + LETTER * letters, top + 1) for left, top, letters in places]


def test_names_of_crowded_points_do_not_cover_each_other() -> None:
    boxes = boxes_of_names(scatter(CROWD, "ms", "accuracy"), CROWD)
    assert len(boxes) == len(CROWD)
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0 and right <= WIDTH and top > 0 and bottom < HEIGHT - BOTTOM + 6
        for other in boxes[number + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_points_lie_where_their_numbers_say() -> None:
    svg = scatter([Point("a", 1, 10), Point("b", 10, 20), Point("c", 100, 30)], "ms", "score", ("floor", 15.0))
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    (ax, ay), (bx, by), (cx, cy) = places
    assert bx - ax == pytest.approx(cx - bx, abs=0.2)  # equal factors, equal ways
    assert ay - by == pytest.approx(by - cy, abs=0.2) and ay > by > cy
    floor = re.search(r'class="floor"[^>]*y1="([\d.]+)"', svg)
    assert floor and float(floor[1]) == pytest.approx((ay + by) / 2, abs=0.2)


def test_text_is_escaped() -> None:
    svg = scatter([Point('<b> & "c"', 1, 2)], "<x>", "y")
    assert [each.text for each in ElementTree.fromstring(svg).iter("text") if each.text and "<" in each.text]
    assert "<b>" not in svg and "<x>" not in svg


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [(3.0,), (1.0, 1.5), (0.001, 900.0), (0.0, 7.0)])
def test_ticks_are_round_and_inside(values: tuple[float, ...], log: bool) -> None:
    if log and 0 in values:
        return
    axis = Axis(values, 0, 100, log)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 10
    assert all(-1e-6 <= axis.at(tick) <= 100 + 1e-6 for tick in ticks)
    assert all(len(f"{tick:g}".strip("-").replace(".", "").strip("0")) <= 2 for tick in ticks)


def test_curves_have_a_line_each_and_their_names() -> None:
    svg = curves([Curve("a, seed 0", [(0, 1.0), (10, 0.5)], 0), Curve("b, seed 0", [(0, 2.0)], 11)], "updates", "loss")
    chart = ElementTree.fromstring(svg)
    line, point = *chart.iter("polyline"), *chart.iter("circle")  # of one value no line would be seen
    assert [each.attrib["class"] for each in (line, point)] == ["c0", "c1"]
    assert [each.findtext("title") for each in (line, point)] == ["a, seed 0", "b, seed 0"]
