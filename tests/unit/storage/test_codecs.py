"""Number types: copying codes changes nothing, errors stay in their bounds, and what does not fit is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from storage import StoreError
from storage.codecs import NOTHING, cast, decode, default_dtype, encode, record_dtype


def rows_of(kind: str, count: int = 3000, width: int = 24) -> np.ndarray:
    """Rows as features have them, and rows as they should not have them."""
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((count, width)) * rng.choice([1e-6, 1e-3, 1, 30, 1e5], (count, 1))
    match kind:
        case "relu":
            rows = np.maximum(rows, 0)
        case "a few just below zero":
            rows = np.where(rng.random(rows.shape) < 0.1, -(10 ** rng.uniform(-9, -3, rows.shape)), np.abs(rows))
        case "mixed":
            rows[::3] = np.abs(rows[::3])
            rows[::7] = 0
        case "extreme":
            rows = np.sign(rows) * 10 ** rng.uniform(-44, 38, (count, 1)) * rng.random(rows.shape)
    return rows.astype(np.float32)


KINDS = ["signed", "relu", "a few just below zero", "mixed", "extreme"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_decoded_gives_the_same_codes_and_scales_again(kind: str) -> None:
    codes, scales = encode(rows_of(kind))
    again, scales_again = encode(decode(codes, scales, "float32"))
    np.testing.assert_array_equal(again, codes)
    assert scales_again.tobytes() == scales.tobytes()


@pytest.mark.parametrize("sign", [1, -1], ids=["unsigned", "signed"])
def test_every_code_comes_back(sign: int) -> None:
    codes = np.arange(256 if sign > 0 else 255, dtype=np.uint8)[None] + np.uint8(sign < 0)  # signed codes begin at 1
    for scale in (1e-29, 0.1, 1.0, 3.3333, 65504.0, 3e38):
        [largest] = np.abs(encode(np.array([[scale]], np.float32))[1])
        if sign < 0:
            [largest] = np.abs(encode(np.array([[-scale]], np.float32))[1])
        scales = np.array([sign * largest], np.float32)
        values = decode(codes, scales, "float32")
        assert (np.diff(values) > 0).all() and values.max() == largest and values.min() == (0 if sign > 0 else -largest)
        found, found_scales = encode(values)
        np.testing.assert_array_equal(found, codes)
        assert found_scales.tobytes() == scales.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_each_value_stays_within_its_bound(kind: str) -> None:
    """With u = sqrt(|x| / L) rounded to a step 2h, |x| is off by L |u - v| (u + v), which is at most L h (2u + h)."""
    rows = rows_of(kind)
    rows = rows[np.abs(rows).max(axis=1) >= NOTHING]
    codes, scales = encode(rows)
    largest = np.abs(rows).max(axis=1).astype(np.float64)[:, None]
    half_step = np.where(rows.min(axis=1) < 0, 0.5 / 127, 0.5 / 255)[:, None]
    bound = half_step * (2 * np.sqrt(np.abs(rows) * largest) + half_step * largest)
    off = np.abs(decode(codes, scales, "float32").astype(np.float64) - rows)
    assert (off <= bound + 1e-6 * largest).all()
    assert (off > bound / 2).any()  # the bound is no larger than it must be
    assert (np.abs(np.abs(scales[:, None]) / largest - 1) < 2e-7).all()


def test_only_rows_with_negative_values_are_signed() -> None:
    rows = np.array([[1, 0.5], [1, -0.5], [1, -1e-9], [0, 0], [-0.0, 0], [-2, -1]], np.float32)
    codes, scales = encode(rows)
    assert np.signbit(scales).tolist() == [False, True, False, False, False, True]
    assert codes.tolist() == [[255, 180], [255, 38], [255, 0], [0, 0], [0, 0], [1, 38]]
    assert decode(codes, scales, "float32")[5].tolist() == pytest.approx([-2, -1], rel=0.01)


def test_zeros_and_what_is_next_to_nothing_come_back_as_zeros() -> None:
    rows = np.array([[0, 0, 0], [1e-40, -1e-40, 0], [1e-31, 0, 0]], np.float32)
    codes, scales = encode(rows)
    assert not codes.any() and not scales.any() and not np.signbit(scales).any()
    assert not decode(codes, scales, "float32").any()


def test_no_rows_give_no_codes() -> None:
    codes, scales = encode(np.empty((0, 5), np.float32))
    assert (codes.shape, codes.dtype, scales.shape, scales.dtype) == ((0, 5), np.uint8, (0,), np.float32)
    assert decode(codes, scales, "float16").shape == (0, 5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    rows = np.ones((3, 4), np.float32)
    rows[1, 2] = value
    with pytest.raises(StoreError, match="a feature is not finite; 8 bits cannot hold that"):
        encode(rows)


def test_the_square_root_scale_has_a_third_of_the_error_of_eight_bits_in_equal_steps() -> None:
    rng = np.random.default_rng(2024)
    rows = np.maximum(rng.standard_normal((500, 2048)) - 0.5, 0) ** 1.5  # most are zero, a few are large
    rows = rows.astype(np.float32)
    steps = np.abs(rows).max(axis=1, keepdims=True) / 127
    linear = np.rint(rows / steps).astype(np.int8) * steps
    ours = decode(*encode(rows), "float32")
    ratio = np.abs(ours - rows).mean() / np.abs(linear - rows).mean()
    print(f"mean error {ratio:.3f} of that of linear int8")
    assert ratio < 0.37


def test_codes_are_decoded_into_every_readable_type() -> None:
    codes, scales = encode(rows_of("mixed", 200) / 10)
    exact = decode(codes, scales, "float32")
    for dtype in ("float16", "bfloat16"):
        found = decode(codes, scales, dtype)
        assert found.dtype.name == dtype
        np.testing.assert_array_equal(found, exact.astype(found.dtype))


# Casting.


@pytest.mark.parametrize("count", [3, 5000], ids=["few values", "many values"])
def test_a_value_too_large_for_float16_is_refused(count: int) -> None:
    for before in (np.float32, ml_dtypes.bfloat16):
        values = np.ones(count, before)
        values[1] = -1e5
        with pytest.raises(
            StoreError, match=r"a feature of (100000|99840|1e\+05) does not fit float16; choose --dtype"
        ):
            cast(values, "float16")
        values[0] = np.inf  # which float16 can hold, and which must not hide the other
        with pytest.raises(StoreError, match=r"a feature of (100000|99840|1e\+05) does not fit float16"):
            cast(values, "float16")


@pytest.mark.parametrize("count", [3, 5000], ids=["few values", "many values"])
def test_infinities_nans_and_the_largest_value_fit_float16(count: int) -> None:
    values = np.zeros(count, np.float32)
    values[:3] = np.inf, np.nan, 65504
    found = cast(values, "float16")
    assert found.dtype == np.float16 and found[0] == np.inf and np.isnan(found[1]) and found[2] == 65504


@pytest.mark.parametrize("count", [100, 5000], ids=["few values", "many values"])
def test_casting_rounds_to_the_nearest_and_back_again_loses_nothing(count: int) -> None:
    half = np.random.default_rng(1).standard_normal(count).astype(np.float16)
    assert cast(cast(half, "float32"), "float16").tobytes() == half.tobytes()
    single = np.random.default_rng(2).standard_normal(count).astype(np.float32)
    assert cast(single, "float16").tobytes() == single.astype(np.float16).tobytes()
    brain = single.astype(ml_dtypes.bfloat16)
    assert cast(single, "bfloat16").tobytes() == brain.tobytes()
    assert cast(cast(brain, "float32"), "bfloat16").tobytes() == brain.tobytes()


def test_casting_to_the_same_type_copies_nothing() -> None:
    values = np.ones(3, np.float16)
    assert cast(values, "float16") is values


def test_a_read_only_array_is_cast_like_any_other() -> None:
    values = np.ones(5000, np.float16)
    values.flags.writeable = False
    assert (cast(values, "float32") == 1).all()


def test_stores_of_8_bits_take_float32_and_give_float16() -> None:
    assert (record_dtype("uint8"), default_dtype("uint8")) == (np.float32, "float16")
    for dtype in ("float16", "float32", "bfloat16"):
        assert record_dtype(dtype).name == default_dtype(dtype) == dtype
