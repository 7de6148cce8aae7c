"""The page: whole in itself, readable, and with all that was asked for."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.unit.trainers.comparison.cells import cached, result
from trainers.comparison.examples import Look, Shown, picture_of, shown, uri_of
from trainers.comparison.lines import tables_of
from trainers.comparison.report import Report, bars, render
from trainers.comparison.result import CellResult
from trainers.data.base import Example

CELLS = [result(seed=0), result(seed=1, score=52.0), cached(seed=0, score=61.0), cached(seed=1, score=63.0)]
REPORT = Report("Side by <side>", CELLS, "triptych compare --data <x>", "a table")
LOADS = {"src", "href", "srcset", "data", "poster", "action"}
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a page loads, whether its tags are closed, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for name, value in attrs if name in LOADS]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for name, value in attrs if name in LOADS]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


IMAGE = np.zeros((40, 60, 3), np.uint8)


def told_of() -> Shown:
    example = Example("1", ("k",), ("Is it <red>?",), {"multiple_choice_answer": "yes"})
    answers = {"ViLT, pixels": {"answer": "no"}, "VL-BERT, cached regions": {"answer": "yes"}}
    return shown("Visual question answering (vqav2)", example, answers, lambda key: picture_of(IMAGE, None, {}))


@pytest.fixture(scope="module")
def page() -> str:
    told = told_of()
    looked = replace(told.answers[0], look=Look("the answer 'no'", uri_of(IMAGE, 20), uri_of(IMAGE, 20)))
    unseen = replace(told.answers[1], look="the model reads <40> tokens")
    return render(replace(REPORT, examples=[replace(told, word="<red>", answers=(looked, unseen))]))


def test_the_page_loads_nothing_from_anywhere(page: str) -> None:
    found = Page(page)
    assert not found.open
    assert found.loads and all(each.startswith("data:image/") for each in found.loads)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert "http://" not in page and "https://" not in page


def test_the_page_says_what_was_found_where_and_by_what_command(page: str) -> None:
    words = " ".join(Page(page).words.split())
    assert "Side by <side>" in words and "This follows a table." in words
    assert "Best score: VL-BERT, cached regions, 62.0 %." in words
    assert "62.0 ± 1.4" in words and "51.0 ± 1.4" in words
    assert "gets 40.0 %" in words
    assert "Measured 2026-01-02 on a machine." in words and "triptych compare --data <x>" in words
    assert "abababababababab" in words


def test_every_picture_and_chart_has_words_for_it(page: str) -> None:
    found = Page(page)
    looks = ["Attention of ViLT, pixels", "Grad-CAM of ViLT, pixels"]
    assert [each["alt"] for each in found.images] == ["The image of: Is it <red>?", *looks]
    assert page.count("<svg") == page.count('role="img" aria-label="') - 3  # as many bars: two lines, one with a cache


def test_two_pictures_of_an_example_stand_side_by_side_and_say_which_is_which() -> None:
    told = told_of()
    page = render(replace(REPORT, examples=[replace(told, pictures=(*told.pictures, *told.pictures))]))
    sides = ["The left image of: Is it <red>?", "The right image of: Is it <red>?"]
    assert [each["alt"] for each in Page(page).images] == sides
    side = page[page.index('<div class="side">') :]
    assert side.rindex('class="frame"') < side.index("</div>\n</div>\n") < side.index("True answer")


def test_times_of_runs_that_share_a_machine_are_said_to_be_such() -> None:
    assert "16 runs shared the machine" in " ".join(Page(render(replace(REPORT, processes=16))).words.split())
    assert "shared the machine" not in render(REPORT) and "Quickest to answer" in render(REPORT)
    assert "Quickest to answer" not in render(replace(REPORT, processes=16))


def test_weights_that_models_begin_with_are_told() -> None:
    assert "(--starts)" in render(replace(REPORT, begun=True)) and "--starts" not in render(REPORT)


def test_right_and_wrong_answers_are_told_apart_without_colours(page: str) -> None:
    words = " ".join(Page(page).words.split())
    assert "ViLT, pixelsno ✗" in words and "VL-BERT, cached regionsyes ✓" in words
    assert "“<red>” in Is it <red>?" in words
    assert "ViLT, pixels: the answer 'no' ✗ the model reads <40> tokens VL-BERT, cached regions ✓" in words


def test_examples_of_which_no_word_was_looked_at_have_no_section_for_it(page: str) -> None:
    assert "Where they look" in page and "Where they look" not in render(REPORT)


def test_a_page_of_failures_names_them() -> None:
    page = render(replace(REPORT, results=[CellResult("x", "METER", task="vqa", seed=2, error="no <file>")]))
    assert "METER, seed 2, vqa: no <file>" in Page(page).words and "Best score" not in page


def test_a_table_that_saw_nothing_says_so() -> None:
    page = render(replace(REPORT, results=[result(score=40.0)]))
    assert "No line is above what the text alone tells." in page and "Best score" not in page
    assert "No line is above" not in render(REPORT)


def test_tiny_twins_are_said_to_be_such() -> None:
    assert "tiny twins" not in render(REPORT)
    assert "tiny twins" in render(replace(REPORT, results=[result(tiny=True)]))


def test_a_line_has_one_colour_in_all_charts() -> None:
    cells = [result(pixels_visual_ms=None), *CELLS[2:]]  # the first line has no place in the chart of latencies
    page = render(replace(REPORT, results=cells))
    [latency, cost, loss, *_] = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert re.findall(r'circle class="(c\d)"', latency) == ["c1"]
    assert re.findall(r'circle class="(c\d)"', cost) == ["c0", "c1"]
    assert re.findall(r'polyline class="(c\d)"', loss) == ["c0", "c1", "c1"]


def test_bars_are_shares_of_the_longest_time() -> None:
    [table] = tables_of(CELLS)
    found = bars(table)
    assert [(each["label"][:4], each["source"], each["total"]) for each in found] == [
        ("ViLT", "from the image", "10.0"),
        ("VL-B", "from the image", "96.0"),
        ("VL-B", "from the cache", "7.00"),
    ]
    widths = [sum(share for *_, share in each["parts"]) for each in found]
    assert widths == pytest.approx([100 * 10 / 96, 100, 100 * 7 / 96])
