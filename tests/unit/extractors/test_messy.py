"""Real odd and damaged files: each ends as its manifest row says, upright or refused for a reason a person can use."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extractors.images import ImageError, read_image

MESSY = Path(__file__).parents[3].parent / "shared" / "data" / "messy"

pytestmark = [
    pytest.mark.skipif(not MESSY.exists(), reason=f"the messy images are not in {MESSY}"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.*"),  # pytest takes back the filter that images.py installs
]

# The manifest's means are those of Pillow's clipping at 255; we divide by 257 (see the docstring of images.py).
SIXTEEN_BIT_GREY = {
    "image__basi0g16.png": "values up to 65535: Pillow's clipping leaves white",
    "pillow__16bit.cropped.tif": "values from 291 to 694: clipped to white, divided to nearly black",
    "pillow__i_trns.png": "values up to 255, stored in 16 bits",
    "scikit-image__chessboard_GRAY_U16.tif": "values 0 and 255, stored in 16 bits",
}
REASONS = {  # how the manifest's reason begins -> our code
    "unsupported": "unsupported",
    "header not recognised or corrupt": "corrupt_header",
    "truncated or corrupt data": "truncated",
    "more pixels than the limit": "too_large",
    "not an image: empty file": "empty",
    "not an image": "not_an_image",
}


def manifest() -> list[dict[str, str]]:
    if not MESSY.exists():
        return []
    with (MESSY / "MANIFEST.csv").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def rows(*expected: str) -> list:
    return [pytest.param(row, id=row["file"]) for row in manifest() if row["expected"] in expected]


def expected_mean(row: dict[str, str]) -> list[float]:
    if row["file"] not in SIXTEEN_BIT_GREY:
        return [float(row[f"rgb_mean_{channel}"]) for channel in "rgb"]
    with Image.open(MESSY / row["file"]) as image:
        assert image.mode == "I;16"
        return [np.asarray(image).mean() / 257] * 3


@pytest.mark.parametrize("row", rows("decode", "decode_exif_rotate", "first_frame"))
def test_a_usable_file_decodes_upright(row):
    image = read_image(MESSY / row["file"])
    assert image.shape == (int(row["final_height"]), int(row["final_width"]), 3)
    assert image.dtype == np.uint8
    assert image.mean(axis=(0, 1)) == pytest.approx(expected_mean(row), abs=1.0)


@pytest.mark.parametrize("row", rows("reject"))
def test_a_useless_file_is_refused_with_its_reason(row):
    wanted = next(code for start, code in REASONS.items() if row["reason"].startswith(start))
    with pytest.raises(ImageError) as refused:
        read_image(MESSY / row["file"])
    assert (refused.value.reason, refused.value.stage) == (wanted, "decode")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("row", rows("decode_or_reject"))
def test_a_doubtful_file_does_one_or_the_other(row):
    try:
        assert read_image(MESSY / row["file"]).shape[2] == 3
    except ImageError as refused:
        assert refused.reason in ("corrupt_header", "truncated")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("libjpeg-turbo__monkey12", "12-bit"),
        ("pillow__hopper.heif", "HEIF"),
        ("coco-box-extraction", "git lfs pull"),
        ("pillow__test-ole-file", "OLE document"),
        ("sharp__struct-image", "SVG"),
        ("sharp__65536-uint32-limit", "4294967296 pixels"),
    ],
)
def test_the_message_names_what_was_found(start, words):
    (file,) = MESSY.glob(f"{start}*")
    with pytest.raises(ImageError, match=words):
        read_image(file)


def test_every_row_is_tested_and_every_exception_is_in_the_manifest():
    every = {row["file"] for row in manifest()}
    assert {
        row.id for row in rows("decode", "decode_exif_rotate", "first_frame", "reject", "decode_or_reject")
    } == every
    assert every >= set(SIXTEEN_BIT_GREY)
