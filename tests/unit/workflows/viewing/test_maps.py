"""Maps of cells against what linear algebra says, and what features of odd values give."""

from __future__ import annotations

import numpy as np
import pytest

from workflows.viewing.maps import as_float32, map_facts, principal_colours, similarity
from workflows.viewing.report import likeness


@pytest.mark.parametrize("shape", [(3, 4, 40), (6, 8, 5)], ids=["few cells", "narrow"])
def test_colours_are_the_first_principal_components(shape: tuple[int, int, int]) -> None:
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    cells = features.reshape(-1, shape[2])
    cells = cells - cells.mean(axis=0)
    left, values, _ = np.linalg.svd(cells, full_matrices=False)
    colours, shares = principal_colours(features)
    assert shares == pytest.approx((values[:3] ** 2 / (values**2).sum()).tolist(), abs=1e-3)
    for at in range(3):
        told = np.corrcoef(colours.reshape(-1, 3)[:, at], left[:, at])[0, 1]
        assert abs(told) > 0.97, "stretched and cut at its ends, but the same order"


def test_one_cell_and_equal_cells_have_colours() -> None:
    for features in (np.ones((1, 1, 4), np.float16), np.ones((2, 2, 2), np.float16)):
        colours, shares = principal_colours(features)
        assert colours.shape == (*features.shape[:2], 3) and shares == [0, 0, 0]


def test_half_floats_become_floats_as_numpy_makes_them() -> None:
    values = np.array([[0.0, -0.0, 1e-7, 65504, -3.14], [np.inf, -np.inf, 1, 2, 3]], np.float16)
    assert np.array_equal(as_float32(values), values.astype(np.float32))
    assert as_float32(values[None]).shape == (1, 2, 5)


def test_what_has_no_length_is_like_nothing_and_what_is_not_finite_is_drawn() -> None:
    features = np.zeros((1, 3, 2), np.float16)
    features[0, 1] = 1
    assert similarity(features, 0, 1)[0].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    features[0, 2] = np.nan
    assert map_facts(features, "norm")["values"] == [0, 1.414, 0]


def test_the_likeness_kept_in_a_report_is_that_of_the_page() -> None:
    import base64

    features = np.random.default_rng(1).normal(size=(3, 4, 16)).astype(np.float16)
    kept = np.frombuffer(base64.b64decode(likeness(features)), np.int8).reshape(12, 12) / 127
    assert np.abs(kept[7] - similarity(features, 1, 3).reshape(-1)).max() < 1 / 127
