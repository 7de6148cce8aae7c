"""Masking: how much is hidden, and what becomes of it, against the papers' numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.trainers.tasks.tiny import tokenizer
from trainers.models.heads import IGNORED
from trainers.tasks.masked_words import Masking, hide_words, words_of
from trainers.tasks.rows import Row, enclosed

TEXT = "a picture of the squares . what colour is the thingy in the box ?"
UNITS = ("token", "word", "slots")


def row() -> Row:
    return enclosed(tokenizer(), tokenizer()(TEXT))


def hidden(masking: Masking, count: int = 3000) -> list[Row]:
    return [hide_words(row(), masking, tokenizer(), np.random.default_rng([1, number])) for number in range(count)]


@pytest.mark.parametrize("unit", UNITS)
def test_15_percent_are_drawn_and_of_these_80_percent_masked_10_replaced_10_kept(unit: str) -> None:
    found, words = hidden(Masking(unit, slots=20)), row()  # type: ignore[arg-type]
    inner = len(words) - 2
    labels = np.array([each.labels for each in found])
    ids, before = np.array([each.ids for each in found]), np.array(words.ids)
    drawn = labels != IGNORED
    wanted = round(0.15 * 20) / (20 - 2) if unit == "slots" else 0.15  # of the slots without [CLS] and [SEP]
    assert drawn.sum() / (len(found) * inner) == pytest.approx(wanted, abs=0.01)
    assert (np.where(drawn, labels, before) == before).all()
    assert (ids[~drawn] == np.broadcast_to(before, ids.shape)[~drawn]).all()
    masked = (ids[drawn] == tokenizer().mask).mean()
    kept = (ids[drawn] == labels[drawn]).mean()
    assert masked == pytest.approx(0.8 + 0.1 / tokenizer().words, abs=0.015)
    assert kept == pytest.approx(0.1 + 0.1 / tokenizer().words, abs=0.015)


def test_special_tokens_are_never_drawn() -> None:
    for unit in UNITS:
        for each in hidden(Masking(unit, slots=20), 200):  # type: ignore[arg-type]
            assert each.labels is not None and each.labels[0] == each.labels[-1] == IGNORED


def test_words_are_hidden_whole_by_word_and_by_slots_but_not_by_token() -> None:
    pairs = [word for word in words_of(row().ids, tokenizer()) if len(word) == 2]
    assert len(pairs) == 2
    for unit in UNITS:
        halves = 0
        for each in hidden(Masking(unit, slots=20), 600):  # type: ignore[arg-type]
            assert each.labels is not None
            halves += sum((each.labels[a] == IGNORED) != (each.labels[b] == IGNORED) for a, b in pairs)
        assert (halves > 0) == (unit == "token")


def test_a_word_has_one_fate_in_vl_bert_s_way_and_each_token_its_own_in_the_other() -> None:
    pairs = [word for word in words_of(row().ids, tokenizer()) if len(word) == 2]
    for unit, least, most in (("word", 0.0, 0.02), ("slots", 0.2, 0.45)):
        mixed = []
        for each in hidden(Masking(unit, slots=20), 1500):  # type: ignore[arg-type]
            assert each.labels is not None
            for first, second in pairs:
                if each.labels[first] != IGNORED:
                    mixed.append((each.ids[first] == tokenizer().mask) != (each.ids[second] == tokenizer().mask))
        assert least <= np.mean(mixed) <= most  # a replacement is [MASK] itself now and then


def test_slots_draw_a_fixed_share_of_a_padded_text_padding_among_it() -> None:
    full, short = Masking("slots", slots=len(row())), Masking("slots", slots=40)
    counts = {sum(label != IGNORED for label in each.labels or ()) for each in hidden(full, 300)}
    assert counts == {round(0.15 * len(row()))}
    counts = {sum(label != IGNORED for label in each.labels or ()) for each in hidden(short, 600)}
    assert max(counts) <= round(0.15 * 40) and min(counts) == 0 and len(counts) > 3


def test_a_row_loses_a_token_with_its_label_and_tag() -> None:
    first = Row((1, 2, 3, 4, 5), 3, (0, 1, 2, 3, 4), (9, 8, 7, 6, 5))
    assert first.without(1) == Row((1, 3, 4, 5), 2, (0, 2, 3, 4), (9, 7, 6, 5))
    assert first.without(3) == Row((1, 2, 3, 5), 3, (0, 1, 2, 4), (9, 8, 7, 5))
