"""The same odd files give the same pixels, or the same errors, wherever they lie: folder, list, tar, Parquet, COCO."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from extractors import GridConfig, RegionConfig, make_extractor
from extractors.images import ImageError, decode
from pipeline.sources import SourceConfig, open_source
from tests.unit.extractors.pictures import photo, png_header, saved

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
Outcome = tuple[str, str]  # reason and message of an error, or shape and digest of the pixels


def odd_images() -> dict[str, bytes]:
    """One small file of each kind that docs/images.md has a policy for."""
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime")]
    palette = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).convert("P")
    exif = Image.Exif()
    exif[0x0112] = 6
    sixteen = np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16)
    return {
        "animated.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "sixteen.png": saved(sixteen),
        "cmyk.jpg": saved(Image.new("CMYK", (8, 6), (200, 30, 90, 10)), "JPEG"),
        "palette.png": saved(palette, transparency=bytes([0, 128])),
        "rotated.jpg": saved(photo(), "JPEG", exif=exif),
        "pixel.png": saved(photo(1, 1)),
        "thin.png": saved(photo(1, 10_000)),
        "bomb.png": png_header(60_000, 60_000),
        "cut.jpg": saved(photo(), "JPEG")[:200],
        "empty.jpg": b"",
        "page.jpg": b"<!doctype html><p>not found",
    }


def as_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def as_list(folder: Path, files: dict[str, bytes]) -> Path:
    as_folder(folder, files)
    (folder / "list.txt").write_text("".join(f"{name}\t{name}\n" for name in files))
    return folder / "list.txt"


def as_coco(folder: Path, files: dict[str, bytes]) -> Path:
    as_folder(folder, files)
    rows = [{"id": name, "file_name": name} for name in files]
    (folder / "coco.json").write_text(json.dumps({"images": rows}))
    return folder / "coco.json"


def as_tar(folder: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return folder / "x.tar"


def as_parquet(folder: Path, files: dict[str, bytes]) -> Path:
    images = [{"bytes": data, "path": name} for name, data in files.items()]
    pq.write_table(pa.table({"key": list(files), "image": images}), folder / "x.parquet")
    return folder / "x.parquet"


def outcomes(images: Path, max_pixels: int) -> dict[str, Outcome]:
    source = open_source(SourceConfig(str(images), keep_extension=True, exclude="list.txt,coco.json,README.md"))
    return {ref.key: outcome(lambda ref=ref: source.read(ref.uri), max_pixels) for ref in source.list().refs}


def outcome(read: Callable[[], bytes], max_pixels: int) -> Outcome:
    try:
        pixels = decode(read(), max_pixels)
    except ImageError as error:
        return error.reason, str(error)
    return str(pixels.shape), hashlib.sha256(pixels.tobytes()).hexdigest()


KINDS = [as_folder, as_list, as_coco, as_tar, as_parquet]


@pytest.mark.parametrize("kind", KINDS)
def test_odd_images_end_alike_in_every_source(tmp_path: Path, kind: Callable[[Path, dict[str, bytes]], Path]) -> None:
    files = odd_images()
    found = outcomes(kind(tmp_path, files), 1_000_000)
    wanted = {name: outcome(lambda data=data: data, 1_000_000) for name, data in files.items()}
    assert found == wanted
    failed = {"bomb.png": "too_large", "empty.jpg": "empty", "page.jpg": "not_an_image", "cut.jpg": "truncated"}
    assert {name: reason for name, (reason, _) in found.items() if not reason.startswith("(")} == failed


@pytest.mark.slow
@pytest.mark.parametrize("kind", [as_folder, as_tar, as_parquet])
def test_the_messy_set_ends_alike_in_every_source(tmp_path: Path, shared: Path, kind) -> None:
    names = [path for path in sorted((shared / "data/messy").iterdir()) if path.suffix not in (".csv", ".md")]
    files = {path.name: path.read_bytes() for path in names if path.suffix not in (".svg", ".doc", ".pfm")}
    found = outcomes(kind(tmp_path, files), 20_000_000)
    assert found == {name: outcome(lambda data=data: data, 20_000_000) for name, data in files.items()}
    assert len(found) > 90


# What the networks make of extreme shapes

TINY = {"weights": "random:0", "width_divisor": 32, "device": "cpu", "shorter": 64, "longer": 100}


@pytest.mark.parametrize(
    ("size", "cells"), [((1, 1), (2, 2)), ((1, 10_000), (1, 4)), ((10_000, 1), (4, 1)), ((2, 300), (1, 4))]
)
def test_a_grid_of_an_extreme_image_has_at_least_one_cell_a_side(size, cells) -> None:
    record = make_extractor(GridConfig(model="r50", **TINY))(photo(*size))
    assert record.features.shape[:2] == cells and record.image_size == size
    assert np.isfinite(record.features.astype(np.float32)).all()


def test_regions_of_one_pixel_are_few_and_of_a_strip_an_error() -> None:
    extractor = make_extractor(RegionConfig(min_boxes=0, **TINY))
    assert extractor(photo(1, 1)).image_size == (1, 1)
    for size in ((1, 10_000), (10_000, 1)):
        with pytest.raises(ImageError) as refused:
            extractor(photo(*size))
        assert (refused.value.reason, refused.value.stage) == ("too_thin", "prepare")
        assert "at least 3 is needed" in str(refused.value)


def test_an_icon_whose_picture_is_larger_than_its_header_says_is_refused() -> None:
    picture = saved(np.zeros((600, 600, 3), np.uint8))
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(picture), 22)
    icon = struct.pack("<HHH", 0, 1, 1) + entry + picture
    with pytest.raises(ImageError) as refused:
        decode(icon, max_pixels=100_000)
    assert refused.value.reason == "too_large" and "600 x 600" in str(refused.value)


def test_a_small_file_that_unpacks_to_much_is_refused_before_it_is_unpacked() -> None:
    rows = zlib.compress(bytes(3 * 4000 + 1) * 4000, 9)
    header = struct.pack(">IIBBBBB", 4000, 4000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    )
    data = b"\x89PNG\r\n\x1a\n" + chunks
    assert len(data) < 100_000 and decode(data).shape == (4000, 4000, 3)
    with pytest.raises(ImageError, match="4000 x 4000 pixels, wanted at most 15999999"):
        decode(data, max_pixels=4000 * 4000 - 1)
