"""Captions in columns: a sequence like any other, small, and keys as data sets and stores spell them."""

from __future__ import annotations

import pickle

import pytest

from trainers.data.base import Example
from trainers.data.captions import Captions
from trainers.data.keys import matched


def test_a_sequence_like_any_other() -> None:
    rows = [(str(at), f"k{at % 3}", f"text {at}") for at in range(7)]
    captions = Captions.of(iter(rows))
    wanted = [Example(id, (image,), (text,)) for id, image, text in rows]
    assert list(captions) == wanted == [captions[at] for at in range(7)] and len(captions) == 7
    assert captions[-1] == wanted[-1] and list(captions[5:1:-2]) == wanted[5:1:-2]
    assert list(captions.take([6, 0])) == [wanted[6], wanted[0]]
    assert list(pickle.loads(pickle.dumps(captions))) == wanted
    with pytest.raises(IndexError, match="7 is not among 7 captions"):
        captions[7]
    assert list(Captions.joined([captions[:2], captions[5:]])) == wanted[:2] + wanted[5:]
    assert list(Captions.of([])) == []


def test_pages_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.data.captions.PAGE", 2)
    captions = Captions.of((str(at), "k", "t") for at in range(5))
    assert [example.id for example in captions] == list("01234")


def test_a_pair_takes_little_memory() -> None:
    captions = Captions.of((str(at), str(at), "a red circle in the middle of a grey picture") for at in range(20000))
    assert captions.table.nbytes / len(captions) < 100


def test_keys_are_matched_by_name_and_number() -> None:
    there = ["val2014/COCO_val2014_000000000042", "dev/dev-850-0-img0", "VG_100K/7", "00000/000000012"]
    wanted = ["42", "dev-850-0-img0", "7", "12", "8"]
    assert matched(wanted, there) == dict(zip(wanted, there, strict=False))
    assert matched(["9"], ["9", "x/9"]) == {"9": "9"}


def test_two_images_of_one_name_stand_for_none() -> None:
    assert matched(["9"], ["a/9", "b/9"]) == {}
