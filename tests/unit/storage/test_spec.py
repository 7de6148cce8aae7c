"""The spec id tells features apart: equal for equal settings in any spelling, another for every change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from storage import FeatureLayout, Spec, SpecMismatchError, StoreError
from storage.errors import spec_differences
from storage.spec import canonical_json

SPEC = Spec(
    view="regions",
    layout=FeatureLayout(2048, "float16", 1601),
    model={"name": "butd-r101", "weights": {"origin": "random:0", "sha256": "00ff"}},
    preprocess={"shorter": 600, "mean": (102.9801, 115.9465, 122.7717)},
    selection={"rule": "10-100", "score_threshold": 0.2},
)


def test_the_id_of_a_spec_stays_what_it_was() -> None:
    # Stores on disk carry it: where this fails, every store ever written is refused.
    assert SPEC.id == "ee0aa5d89e2bebcf586b034e674408355cf0388631b72c7788e62e9d47950949"


CHANGES = {
    "view": replace(SPEC, view="grid"),
    "dim": replace(SPEC, layout=FeatureLayout(1024, "float16", 1601)),
    "dtype": replace(SPEC, layout=FeatureLayout(2048, "float32", 1601)),
    "class_probs": replace(SPEC, layout=FeatureLayout(2048, "float16", 0)),
    "model name": replace(SPEC, model={**SPEC.model, "name": "other"}),
    "weights digest": replace(SPEC, model={**SPEC.model, "weights": {"origin": "random:0", "sha256": "00fe"}}),
    "a mean's last digit": replace(SPEC, preprocess={"shorter": 600, "mean": (102.9801, 115.9465, 122.7718)}),
    "order of a list": replace(SPEC, preprocess={"shorter": 600, "mean": (115.9465, 102.9801, 122.7717)}),
    "a missing field": replace(SPEC, preprocess={"shorter": 600}),
    "an added field": replace(SPEC, selection={**SPEC.selection, "more": None}),
    "int for float": replace(SPEC, preprocess={**SPEC.preprocess, "shorter": 600.0}),
    "text for number": replace(SPEC, preprocess={**SPEC.preprocess, "shorter": "600"}),
    "a moved field": replace(SPEC, model={}, selection={**SPEC.selection, **SPEC.model}),
}


def test_every_change_makes_another_id() -> None:
    ids = {name: spec.id for name, spec in CHANGES.items()} | {"unchanged": SPEC.id}
    assert len(set(ids.values())) == len(ids), ids


def test_key_order_and_tuples_make_no_difference() -> None:
    spelled = Spec(
        selection={"score_threshold": 0.2, "rule": "10-100"},
        preprocess={"mean": [102.9801, 115.9465, 122.7717], "shorter": 600},
        model={"weights": {"sha256": "00ff", "origin": "random:0"}, "name": "butd-r101"},
        layout=FeatureLayout(class_probs=1601, dtype="float16", dim=2048),
        view="regions",
    )
    assert spelled.id == SPEC.id
    assert spelled.to_dict() == SPEC.to_dict()


def test_a_spec_read_back_equals_the_one_written() -> None:
    back = Spec.from_dict(SPEC.to_dict())
    assert back.id == SPEC.id
    assert back.layout == SPEC.layout
    assert back.to_dict() == SPEC.to_dict()
    assert Spec.from_dict(back.to_dict()) == back


def test_the_dictionary_of_a_spec_is_plain_json() -> None:
    assert SPEC.to_dict()["preprocess"]["mean"] == [102.9801, 115.9465, 122.7717]
    assert SPEC.to_dict()["layout"] == {"dim": 2048, "dtype": "float16", "class_probs": 1601}


WRONG = {
    "view": (lambda: Spec("patchwork", FeatureLayout(8)), "view 'patchwork' is not known; choose one of regions, grid"),
    "dtype": (lambda: FeatureLayout(8, "float64"), "dtype 'float64' is not known; choose one of float16, float32"),
    "dim": (lambda: FeatureLayout(0), "feature width 0 must be at least 1"),
    "far too wide": (lambda: FeatureLayout(1 << 40), "feature width 1099511627776 must be at least 1, and below"),
    "too many classes": (lambda: FeatureLayout(4, class_probs=1 << 40), "1099511627776 class probabilities must be"),
}


@pytest.mark.parametrize(("build", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_no_store_can_hold_is_refused(build: Any, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        build()


def test_canonical_json_is_ascii_sorted_and_without_spaces() -> None:
    assert canonical_json({"ü": (1, 2.5), "a": None}) == b'{"a":null,"\\u00fc":[1,2.5]}'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_refuses_numbers_that_json_cannot_spell(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"threshold": value})


def test_a_mismatch_is_told_field_by_field() -> None:
    stored = CHANGES["weights digest"].to_dict()
    wanted = replace(SPEC, layout=FeatureLayout(2048, "float32", 1601), preprocess={"shorter": 800}).to_dict()
    error = SpecMismatchError("features/regions", stored, wanted)
    assert error.differences == [
        "layout.dtype: 'float16' in the store, 'float32' in this job",
        "model.weights.sha256: '00fe' in the store, '00ff' in this job",
        "preprocess.mean: [102.9801, 115.9465, 122.7717] in the store, None in this job",
        "preprocess.shorter: 600 in the store, 800 in this job",
    ]
    message = str(error)
    assert message.startswith("features/regions holds other features than this job would write (")
    assert all(line in message for line in error.differences)
    assert message.endswith("Choose another --out folder, or repeat the settings of the store.")
    assert "\n" not in message


def test_equal_specs_have_no_differences() -> None:
    assert spec_differences(SPEC.to_dict(), SPEC.to_dict()) == []


def test_a_mapping_against_a_plain_value_is_one_difference() -> None:
    assert spec_differences({"a": {"b": 1}}, {"a": 1}) == ["a: {'b': 1} in the store, 1 in this job"]
