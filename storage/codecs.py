"""Number types that features are stored in, and the way between them and the type a reader asks for.

float32, float16 and bfloat16 are kept as they are. "uint8" keeps a row in 8 bits a value on a square-root scale: the
codes of small values, of which features after a ReLU mostly consist, lie closer together than those of large ones. The
scale of a row is its largest magnitude; a negative scale marks a row with negative values, whose codes are signed.
"bytes" is for pixels: 8 bits as they are, which is also how they are read.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from storage.errors import StoreError

NUMPY: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "uint8": np.dtype(np.uint8),
    "bytes": np.dtype(np.uint8),
}
READABLE = ("float16", "float32", "bfloat16")
UNSIGNED, SIGNED, ZERO = 255, 127, 128
NOTHING = 1e-30  # far above where float32 loses digits, far below any feature


def exact_dtype(stored: str) -> str:
    """The dtype in which nothing of what is stored is lost: what is stored, and float32 where the store encodes."""
    return "float32" if stored == "uint8" else stored


def record_dtype(stored: str) -> np.dtype[Any]:
    """`exact_dtype` for numpy: what records carry into a store."""
    return NUMPY[exact_dtype(stored)]


def default_dtype(stored: str) -> str:
    """The dtype that records come out in, unless a reader asks for another."""
    return "float16" if stored == "uint8" else stored


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """Features in another number type; the same array where it has that type already.

    Raises:
        StoreError: a finite value is too large for float16.
    """
    wanted = NUMPY[dtype]
    if values.dtype == wanted:
        return values
    found = _cast(values, wanted)
    if wanted == np.float16 and not np.isfinite(found).all():
        lost = np.abs(values[~np.isfinite(found)].astype(np.float32))
        if np.isfinite(lost).any():
            largest = float(lost[np.isfinite(lost)].max())
            raise StoreError(f"a feature of {largest:g} does not fit float16; choose --dtype float32.")
    return found


def _cast(values: np.ndarray, wanted: np.dtype[Any]) -> np.ndarray:
    if {values.dtype, wanted} == {np.dtype(np.float16), np.dtype(np.float32)} and values.size > 4096:
        import torch  # numpy converts half floats 20 times slower

        source = values if values.flags.writeable else values.copy()
        kind = torch.float16 if wanted == np.float16 else torch.float32
        converted: np.ndarray = torch.from_numpy(np.ascontiguousarray(source)).to(kind).numpy()
        return converted
    with np.errstate(over="ignore"):
        return values.astype(wanted)


def encode(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise float32 rows (N, D) to codes (N, D) uint8 and scales (N,) float32.

    What comes out of `decode` as float32 gives the same codes and scales again: copying a store changes nothing.
    A value x of a row whose largest magnitude is L is off by (2 sqrt(|x| L) + h L) h at most, where h is half a step:
    1/510, and 1/254 in a row with negative values. A row below 1e-30 is stored as zeros.

    Raises:
        StoreError: a value is not finite.
    """
    largest = np.abs(rows).max(axis=1, initial=0.0)
    if not np.isfinite(largest).all():
        raise StoreError("a feature is not finite; 8 bits cannot hold that.")
    lowest = rows.min(axis=1, initial=0.0)
    # A row is signed where a negative value is left after rounding; else it would have other codes the next time.
    scales = _settled(largest, SIGNED)
    signed = np.rint(np.sqrt(-lowest / np.where(scales > 0, scales, 1)) * SIGNED) > 0
    signed &= scales > 0
    scales[~signed] = _settled(largest[~signed], UNSIGNED)
    steps = np.where(signed, SIGNED, UNSIGNED).astype(np.float32)
    magnitudes = np.abs(rows)
    lost = (scales == 0) | (~signed & (lowest < 0))
    magnitudes[lost] = np.where(scales[lost, None] > 0, np.maximum(rows[lost], 0), 0)
    unit = np.sqrt(magnitudes / np.where(scales > 0, scales, 1)[:, None])
    codes = np.rint(unit * steps[:, None]).astype(np.int16)
    if signed.any():
        codes[signed] = np.where(rows[signed] < 0, -codes[signed], codes[signed]) + ZERO
    return codes.astype(np.uint8), np.where(signed, -scales, scales).astype(np.float32)


def _settled(largest: np.ndarray, steps: int) -> np.ndarray:
    """The nearest scales that decoding the largest code gives back to the last bit."""
    squares = np.float32(steps * steps)
    scales = np.where(largest < NOTHING, 0, largest).astype(np.float32)
    while True:
        decoded = (scales / squares) * squares
        if np.array_equal(decoded, scales):
            return scales
        scales = decoded


def decode(codes: np.ndarray, scales: np.ndarray, dtype: str) -> np.ndarray:
    """Rows (N, D) in `dtype` from what `encode` gave."""
    values = codes.astype(np.float32)
    signed = scales < 0
    if signed.any():
        centred = values[signed] - ZERO
        values[signed] = centred * np.abs(centred)
        values[~signed] *= values[~signed]
    else:
        values *= values
    values *= (np.abs(scales) / np.where(signed, SIGNED**2, UNSIGNED**2)).astype(np.float32)[:, None]
    return cast(values, dtype)
