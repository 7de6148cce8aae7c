"""Each policy of `decode`, on images made here."""

import io
import math
import pickle
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from extractors.images import ImageError, decode, read_image
from tests.unit.extractors.pictures import photo, png_chunk, png_header, saved

REPOSITORY = Path(__file__).parents[3]

pytestmark = [  # pytest takes back the filters that images.py installs
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.*"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning:PIL.*"),
]


def refusal(data: bytes, **options) -> ImageError:
    with pytest.raises(ImageError) as refused:
        decode(data, **options)
    assert "\n" not in str(refused.value)
    return refused.value


# What decodes, and to what


def test_the_array_is_plain_rgb():
    image = decode(saved(photo()))
    assert (image.dtype, image.shape) == (np.uint8, (24, 36, 3))
    assert image.flags.c_contiguous and image.flags.writeable and image.flags.owndata
    np.testing.assert_array_equal(image, photo())


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (300, 200), (2300, 2000)])  # the last one lies in pieces
def test_pixels_are_copied_whole(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = decode(saved(pixels, "BMP"))
    assert found.flags.c_contiguous and found.flags.writeable and found.flags.owndata
    np.testing.assert_array_equal(found, pixels)


UPRIGHT = {  # EXIF orientation -> what brings the stored picture upright, in NumPy's words
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(file_format, {})
    image = decode(saved(photo(), file_format, exif=exif, **options))
    tolerance = 12 if file_format == "JPEG" else 0
    np.testing.assert_allclose(image.astype(int), UPRIGHT[orientation](photo()), atol=tolerance)


def test_xmp_orientation():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image = decode(saved(photo(), "WEBP", lossless=True, xmp=xmp))
    np.testing.assert_array_equal(image, UPRIGHT[6](photo()))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0", b"\xff" * 40])
def test_broken_exif_means_no_rotation(exif):
    np.testing.assert_array_equal(decode(saved(photo(), "PNG", exif=exif)), photo())


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_means_no_rotation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(saved(photo(), "PNG", exif=exif)), photo())


@pytest.mark.parametrize("alpha", [0, 128])
def test_alpha_is_dropped_not_composited(alpha):
    image = Image.fromarray(photo())
    image.putalpha(alpha)
    np.testing.assert_array_equal(decode(saved(image)), photo())


def test_grey_is_replicated_with_or_without_alpha():
    grey = photo()[..., 1]
    wanted = np.stack([grey] * 3, axis=-1)
    with_alpha = Image.merge("LA", [Image.fromarray(grey), Image.new("L", (36, 24), 7)])
    np.testing.assert_array_equal(decode(saved(grey)), wanted)
    np.testing.assert_array_equal(decode(saved(with_alpha)), wanted)


def test_bilevel_is_black_and_white():
    bits = photo()[..., 1] > 127
    np.testing.assert_array_equal(decode(saved(bits)), np.stack([bits * np.uint8(255)] * 3, axis=-1))


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])], ids=["opaque", "one", "table"])
def test_a_palette_is_expanded_and_its_transparency_dropped(transparency):
    palette = np.array([[200, 10, 30], [0, 90, 180], [255, 255, 0]], np.uint8)
    index = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
    image = Image.fromarray(index).convert("P")
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    np.testing.assert_array_equal(decode(saved(image, "PNG", **options)), palette[index])


@pytest.mark.parametrize(("mode", "file_format"), [("CMYK", "TIFF"), ("LAB", "TIFF"), ("CMYK", "JPEG")])
def test_other_colour_spaces_are_converted_by_pillow(mode, file_format):
    colour = {"CMYK": (200, 30, 90, 10), "LAB": (140, 20, 250)}[mode]
    image = Image.new(mode, (16, 8), colour)
    wanted = np.asarray(image.convert("RGB")).astype(int)
    np.testing.assert_allclose(decode(saved(image, file_format)), wanted, atol=3 if file_format == "JPEG" else 0)


def test_an_icc_profile_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(decode(saved(photo(), "PNG", icc_profile=profile)), photo())


SIXTEEN = np.array([[0, 128, 129, 257, 385, 386], [32767, 32896, 40000, 65278, 65407, 65535]], np.uint16)


def pgm(values: np.ndarray) -> bytes:
    """16-bit PGM, which Pillow reads as mode I."""
    return b"P5 %d %d 65535\n" % values.shape[::-1] + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (saved(SIXTEEN, "PNG"), "I;16"),
        (saved(SIXTEEN, "TIFF"), "I;16"),
        (saved(Image.frombytes("I;16B", (6, 2), SIXTEEN.astype(">u2").tobytes()), "TIFF"), "I;16B"),
        (saved(SIXTEEN.astype(np.int32), "TIFF"), "I"),
        (pgm(SIXTEEN), "I"),
    ],
    ids=["png", "tiff", "tiff-big-endian", "tiff-32-bit", "pgm"],
)
def test_16_bit_grey_is_divided_by_257(data, mode):
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode
    wanted = np.rint(SIXTEEN / 257)
    np.testing.assert_array_equal(decode(data), np.stack([wanted] * 3, axis=-1))


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_outside_16_bits_are_refused(value):
    error = refusal(saved(np.array([[0, value]], np.int32), "TIFF"))
    assert error.reason == "unsupported" and str(value) in str(error)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
        ([0.0, 1.4, 300.0], [0, 1, 255]),
        ([-0.5, 0.5, 1.0], [0, 0, 1]),
        ([math.nan, math.inf, 1.0], [0, 0, 255]),
        ([-math.inf, 200.0, 1e30], [0, 200, 255]),
    ],
)
def test_floats(values, wanted):
    data = saved(np.array([values], np.float32), "TIFF")
    np.testing.assert_array_equal(decode(data)[0, :, 0], wanted)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_stands_for_all(file_format):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = saved(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode(data), np.asarray(frames[0]))


def test_one_pixel():
    assert decode(saved(photo()[:1, :1])).shape == (1, 1, 3)


# What does not


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_data_is_refused(file_format, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = saved(noise, file_format)
    assert refusal(data[: int(kept * len(data))]).reason in ("truncated", "corrupt_header")


def test_a_png_cut_behind_its_pixels_is_whole():
    data = saved(photo()).removesuffix(png_chunk(b"IEND", b""))
    text = png_chunk(b"tEXt", b"Comment\0" + b"words " * 50)
    np.testing.assert_array_equal(decode(data + text[:100]), photo())


def test_a_damaged_png_is_refused_even_when_also_cut():
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in photo()))
    whole, cut = png_header(36, 24) + png_chunk(b"IDAT", pixels), png_chunk(b"tEXt", b"Comment\0words")[:15]
    damaged = png_header(36, 24) + png_chunk(b"IDAT", pixels[:40] + bytes(20) + pixels[60:])
    np.testing.assert_array_equal(decode(whole + cut), photo())
    assert refusal(damaged + cut).reason == "truncated"


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "empty", "0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "not_an_image", "git lfs pull"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_an_image", "SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- made by hand -->\n<svg width="1"/>', "not_an_image", "SVG"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "not_an_image", "XML"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "not_an_image", "HTML"),
        (b'{"error": "not found"}', "not_an_image", "plain text"),
        (b"%PDF-1.7\n", "not_an_image", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not_an_image", "PostScript"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "not_an_image", "OLE"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "not_an_image", "NumPy"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "not_an_image", "MP4"),
        (b"\0\0\0\x20ftypheic\0\0\0\0mif1heic", "unsupported", "HEIF"),
        (bytes(range(128, 256)), "not_an_image", "unknown data"),
        (b"\0" * 100, "not_an_image", "unknown data"),
        (b"\xff\xd8\xff", "corrupt_header", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "corrupt_header", "PNG"),
        (b"GIF89a", "corrupt_header", "GIF"),
        (b"P6\n-10 -10\n255\n", "corrupt_header", "PPM"),
        (b"II*\0\x08\0\0\0", "corrupt_header", "TIFF"),
    ],
)
def test_the_reason_and_the_message_say_what_was_found(data, reason, words):
    error = refusal(data)
    assert (error.reason, error.stage) == (reason, "decode")
    assert words in str(error)


def test_a_12_bit_jpeg_is_unsupported():
    data = bytearray(saved(photo(), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12  # the start-of-frame segment: marker, length, then bits a sample
    error = refusal(bytes(data))
    assert error.reason == "unsupported" and "12-bit" in str(error)


@pytest.mark.parametrize("side", [12_000, 20_000, 60_000], ids=["fine", "pillow-warns", "pillow-refuses"])
def test_a_bomb_is_refused_by_its_header(side):
    error = refusal(png_header(side, side), max_pixels=1_000_000)
    assert error.reason == "too_large" and "1000000" in str(error)


def test_the_limit_itself_is_allowed():
    assert decode(saved(photo()), max_pixels=24 * 36).shape == (24, 36, 3)
    assert refusal(saved(photo()), max_pixels=24 * 36 - 1).reason == "too_large"


@pytest.mark.parametrize("error", [RecursionError("deep"), MemoryError(), SystemError("c code"), OverflowError("big")])
def test_whatever_pillow_raises_is_an_image_error(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    wanted = "out_of_memory" if isinstance(error, MemoryError) else "truncated"
    assert refusal(saved(photo())).reason == wanted


def test_an_interrupt_is_not_an_image_error(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFile.ImageFile, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode(saved(photo()))


def test_image_errors_travel():
    error = pickle.loads(pickle.dumps(ImageError("missing", "found no file a.jpg", stage="read")))
    assert isinstance(error, ValueError)
    assert (error.reason, error.stage, str(error)) == ("missing", "read", "found no file a.jpg")


def test_read_image(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(photo()))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo())
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.png")), photo())


@pytest.mark.parametrize(("name", "reason"), [("none.jpg", "missing"), (".", "unreadable"), ("a\0b", "unreadable")])
def test_a_file_that_cannot_be_read(tmp_path, name, reason):
    with pytest.raises(ImageError) as refused:
        read_image(tmp_path / name)
    assert (refused.value.reason, refused.value.stage) == (reason, "read")


# Any bytes

SMALL = {
    file_format: saved(photo(12, 18), file_format, **options)
    for file_format, options in {
        "JPEG": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
        "PNG": {},
        "GIF": {},
        "WEBP": {},
        "TIFF": {"compression": "tiff_lzw"},
    }.items()
}
STARTS = [b"", *(data[:12] for data in SMALL.values()), b"BM", b"\0\0\1\0\1\0", b"8BPS\0\1", b"P5 9 9 9 ", b"<svg"]


def assert_image_or_refusal(data: bytes) -> None:
    try:
        image = decode(data, max_pixels=1_000_000)  # a corrupt header may ask for far more than a test should decode
    except ImageError as refused:
        assert refused.reason and "\n" not in str(refused)
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(STARTS), st.binary(max_size=300))
def test_random_bytes_end_in_an_image_or_a_reason(start, rest):
    assert_image_or_refusal(start + rest)


@settings(deadline=None, max_examples=600)
@given(st.sampled_from(sorted(SMALL)), st.floats(0, 1, exclude_max=True), st.integers(0, 255))
@example("TIFF", 0.0, 0)
def test_one_wrong_byte_ends_in_an_image_or_a_reason(file_format, where, value):
    data = bytearray(SMALL[file_format])
    data[int(where * len(data))] = value
    assert_image_or_refusal(bytes(data))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(SMALL)), st.floats(0, 1))
def test_any_cut_ends_in_an_image_or_a_reason(file_format, kept):
    data = SMALL[file_format]
    assert_image_or_refusal(data[: int(kept * len(data))])


# Threads, and the host program


def test_threads_decode_at_once():
    images = [np.roll(photo(200, 300), shift, axis=1) for shift in range(4)]
    files = [saved(image, file_format) for image in images for file_format in ("PNG", "TIFF")]
    with ThreadPoolExecutor(8) as threads:
        decoded = list(threads.map(decode, files * 10))
    for number, image in enumerate(decoded):
        np.testing.assert_array_equal(image, images[number % len(files) // 2])


def run_python(code: str, *stdin: bytes) -> str:
    """The output of `code` in a fresh process where Pillow's warnings would be errors."""
    command = [sys.executable, "-W", "error::UserWarning", "-W", "error::RuntimeWarning", "-c", code]
    done = subprocess.run(command, input=b"".join(stdin), capture_output=True, cwd=REPOSITORY, timeout=120)
    assert done.stderr == b"", done.stderr.decode()
    return done.stdout.decode().strip()


def test_the_first_decodes_of_a_process_may_be_concurrent():
    """Left to itself Pillow loads its TIFF plug-in on demand, where a second thread can miss it."""
    code = """
import sys, threading
from extractors.images import decode
data, start, shapes = sys.stdin.buffer.read(), threading.Barrier(8), []
def work():
    start.wait()
    shapes.append(decode(data).shape)
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
print(len(shapes), set(shapes))
"""
    assert run_python(code, saved(photo(), "TIFF")) == "8 {(24, 36, 3)}"


def test_pillows_warnings_are_neither_shown_nor_errors():
    index = Image.fromarray(np.zeros((2, 2), np.uint8)).convert("P")
    index.putpalette([9, 8, 7])
    warned = saved(index, "PNG", transparency=bytes([0, 128]))  # "should be converted to RGBA images"
    code = f"""
import sys
from PIL import Image, ImageCms, ImageFile
before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
from extractors.images import ImageError, decode
data = sys.stdin.buffer.read()
print(decode(data[:{len(warned)}])[0, 0].tolist())
try:
    decode(data[{len(warned)}:], max_pixels=1000)
except ImageError as error:
    print(error.reason, "12000 x 12000" in str(error))
print(before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES))
"""
    assert run_python(code, warned, png_header(12_000, 12_000)).split("\n") == ["[9, 8, 7]", "too_large True", "True"]
