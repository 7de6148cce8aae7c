"""Captions as words: what the Stanford tokeniser gives, noted down for each rule, and for real captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainers.caption_words import words


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A man's dog isn't here, it's gone.", "a man 's dog is n't here it 's gone"),
        ("the womens' 'bike' said \"hello\" -- then left... now!", "the womens bike said hello then left now"),
        ("He'd've said they'll cannot, gonna y'all", "he 'd 've said they 'll can not gon na y' all"),
        ("a man (in black) [x]", "a man -lrb- in black -rrb- -lsb- x -rsb-"),
        ("50% off for $5 or £3", "50 % off for $ 5 or # 3"),
        ("10:30 pm 1,000 3.5 1/2 3/4-inch 1990s", "10:30 pm 1,000 3.5 1/2 3/4-inch 1990s"),
        ("two-way black/white a_b a+b", "two-way black/white a_b a + b"),
        ("Mr. Smith at St. John, U.S.A., t.v. no. 5. No.", "mr. smith at st. john u.s.a. t.v. no. 5 no"),
        ("5 o'clock, 6'2\" AT&T black&white", "5 o'clock 6 2 at&t black & white"),
        ("what?! what? women’s “bag”", "what ?! what women 's bag"),
        ("", ""),
    ],
)
def test_words(text: str, wanted: str) -> None:
    assert words(text) == wanted


def test_real_captions_are_split_as_the_stanford_tokeniser_splits_them(shared: Path) -> None:
    folder = shared / "data/annotations/caption_metrics/flickr8k_vit8k"
    split = json.loads((folder / "tokenized.json").read_text())
    raw = json.loads((folder / "references.json").read_text())
    pairs = [
        (text, wanted)
        for image, texts in raw.items()
        for text, wanted in zip(texts, split["references"][image], strict=True)
    ]
    assert len(pairs) == 5000
    assert [(text, words(text)) for text, _ in pairs] == pairs
