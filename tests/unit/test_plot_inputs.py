"""The pictures of docs/models.md tell what the models do: their tokens, segments and positions."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def pictures() -> Any:
    pytest.importorskip("matplotlib", reason="matplotlib is of the development tools; uv sync installs it")
    from docs import plot_inputs

    return plot_inputs


def names(strip: Any) -> list[str]:
    return [token.name for token in strip.tokens]


def column(strip: Any, row: str) -> list[str]:
    return [token.added[row] for token in strip.tokens]


def test_vl_bert_s_regions_share_a_position_and_words_see_the_whole_image(pictures: Any) -> None:
    _, (question, caption) = pictures.of_vl_bert()
    assert names(question) == [*pictures.SENTENCES[0], "whole", "box 1", "box 2", "box 3", "[END]"]
    assert column(question, "position") == [*"0123456", "7", "7", "7", "7", "8"]
    assert column(question, "segment") == ["0"] * 7 + ["2"] * 5
    assert column(caption, "visual part") == ["whole"] * 5 + ["box 1", "box 2", "none"]


def test_vilt_s_positions_are_stretched_to_the_image(pictures: Any) -> None:
    _, (question, caption) = pictures.of_vilt()
    assert names(question)[7:9] == ["[image]", "0,0"] and len(question.tokens) == 7 + 1 + 3 * 4
    assert column(question, "position")[-1] == "11, 11" and column(caption, "position")[:4] == ["0", "1", "2", "3"]
    assert column(caption, "modality") == ["0"] * 4 + ["1"] * 10


def test_grid_vlp_draws_in_pre_training_only(pictures: Any) -> None:
    _, strips = pictures.of_grid_vlp()
    assert [len(strip.tokens) for strip in strips] == [7 + 12, 4 + 9, 7 + 5, 4 + 5]
    assert column(strips[0], "position") == [*"0123456", *["none"] * 12]


def test_pixel_bert_s_cells_are_of_64_pixels(pictures: Any) -> None:
    _, (question, caption) = pictures.of_pixel_bert()
    assert names(question)[-1] == "2,4" and len(caption.tokens) == 4 + 9


@pytest.mark.slow
def test_meter_pads_texts_and_counts_roberta_s_positions(pictures: Any) -> None:
    _, strips = pictures.of_meter()
    assert len(strips) == 4 and len(strips[1].tokens) == 1 + 9
    assert names(strips[2])[-3:] == ["<pad>"] * 3
