"""Whatever records are written, in whatever units, come back bit for bit."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import FeatureLayout, Record, RegionRecord, Spec, StoreWriter, open_store, verify_store
from storage.codecs import record_dtype
from storage.records import RECORD_OF, pack
from tests.unit.storage.samples import assert_same

KEYS = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=8)  # HDF5 keys cannot end in \0
SIZES = st.tuples(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1))


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    view = draw(st.sampled_from(["regions", "grid", "patches", "pixels"]))
    if view == "pixels":
        return Spec(view, FeatureLayout(3, "bytes"))
    layout = FeatureLayout(
        dim=draw(st.integers(1, 5)),
        dtype=draw(st.sampled_from(["float16", "float32", "bfloat16"])),
        class_probs=draw(st.integers(0, 3)) if view == "regions" else 0,
        without=("whole_image",) if view == "patches" and draw(st.booleans()) else (),
    )
    return Spec(view, layout)


def any_bits(draw: st.DrawFn, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of random bits: every NaN, infinity and subnormal number occurs."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


@st.composite
def records(draw: st.DrawFn, spec: Spec, key: str) -> Record:
    dim, dtype, classes = spec.layout.dim, record_dtype(spec.layout.dtype), spec.layout.class_probs
    if spec.view != "regions":
        shape = (draw(st.integers(0, 3)), draw(st.integers(0, 3)), dim)
        whole = {"whole_image": any_bits(draw, (dim,), dtype)} if "whole_image" in spec.carried else {}
        return RECORD_OF[spec.view](key, draw(SIZES), any_bits(draw, shape, dtype), **whole)  # type: ignore[call-arg]
    boxes = draw(st.integers(0, 4))
    return RegionRecord(
        key,
        draw(SIZES),
        boxes=any_bits(draw, (boxes, 4), np.float32),
        features=any_bits(draw, (boxes, dim), dtype),
        whole_image=any_bits(draw, (dim,), dtype),
        class_ids=any_bits(draw, (boxes,), np.int32),
        class_scores=any_bits(draw, (boxes,), np.float32),
        attribute_ids=any_bits(draw, (boxes,), np.int32),
        attribute_scores=any_bits(draw, (boxes,), np.float32),
        class_probs=any_bits(draw, (boxes, classes), np.float16) if classes else None,
    )


@st.composite
def stores(draw: st.DrawFn) -> tuple[Spec, list[list[Record]]]:
    """A spec, and the records of up to three units."""
    spec = draw(specs())
    keys = draw(st.lists(KEYS, unique=True, min_size=1, max_size=6))
    cuts = sorted(draw(st.lists(st.integers(0, len(keys)), max_size=2)))
    made = [draw(records(spec, key)) for key in keys]
    borders = [0, *cuts, len(keys)]
    return spec, [made[start:end] for start, end in pairwise(borders)]


@settings(max_examples=60, deadline=None)
@given(stores(), st.sampled_from(["arrow", "hdf5", "arrow-zstd"]))
def test_random_records_come_back_bit_for_bit(content: tuple[Spec, list[list[Record]]], format: str) -> None:
    spec, units = content
    with tempfile.TemporaryDirectory() as folder:
        writer = StoreWriter(Path(folder) / "store", spec, format=format)
        for unit_records in units:
            with writer.unit([record.key for record in unit_records]) as unit:
                for record in unit_records:
                    unit.append(record)
                unit.commit()
        store = open_store(writer.path)
        wanted = {record.key: record for unit_records in units for record in unit_records}
        assert set(store.keys()) == set(wanted)
        for key, record in wanted.items():
            assert_same(store[key], record)
        batch = store.batch(list(wanted))
        assert batch.values.tobytes() == pack(list(wanted.values())).values.tobytes()
        assert verify_store(writer.path).problems == []
