"""Image files in, upright RGB pixels out, and the resizes of the official extraction codes: pixels are read here only.

What `decode` makes of a file:

- The first frame of an animation and the first page of a multipage file stand for the whole.
- EXIF and XMP orientation is applied. Broken metadata means no rotation, not a refused image.
- Grey and bilevel are replicated, palettes expanded, alpha dropped (the colours below it show; nothing is composited).
- CMYK, YCCK, YCbCr, HSV and LAB are converted by Pillow's fixed formulas. ICC profiles are ignored, as the official
  extraction codes ignore them.
- 16 bits of grey (also in Pillow's 32-bit mode `I`) become 8 by division by 257, rounded, where Pillow would clip at
  255; of 16-bit colour Pillow keeps the high byte. Integers outside 16 bits have no known white and are refused.
- Floats all within [0, 1] are multiplied by 255; others are taken as 0 to 255, rounded and clipped. Not finite is 0.
- Truncated or corrupt pixels are refused, never half-decoded. A PNG cut behind its last pixel is whole.
- EPS is refused, because Pillow would hand it to Ghostscript: decoding starts no other program.

Pillow's process-wide switches stay the host program's: MAX_IMAGE_PIXELS applies besides `max_pixels`, and a host that
sets ImageFile.LOAD_TRUNCATED_IMAGES gets half-decoded images from Pillow.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from PIL import ExifTags, Image, UnidentifiedImageError

from storage.frames import resized_shape

MAX_PIXELS = 178_956_970  # Pillow's own error limit

# All plug-ins at once and now, the common ones first as Image.open does. Image.open would load the rare ones on demand,
# but not thread-safely (a thread that looks while another one loads can miss a format), and not beside our own list.
Image.preinit()
Image.init()

# What Pillow warns about is decided in this file, by refusing or by a stated policy. Once at import, because
# warnings.catch_warnings around a decode would not be thread-safe; Pillow's deprecations are still shown.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, module=r"PIL\.")

_REFUSED_FORMATS = {"EPS"}

_UPRIGHT = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# How Pillow words that a file is sound but beyond it.
_UNSUPPORTED = re.compile(
    r"unsupported|not (yet )?supported|not installed|not available|unimplemented|cannot handle|cannot load|"
    r"cannot find loader|unknown pixel mode",
    re.IGNORECASE,
)

_EXPORT = "export it as JPEG or PNG"
_OTHER_FILES = (  # first bytes, what the file is, what to do
    (b"version https://git-lfs", "a git LFS pointer text", "run `git lfs pull` where the images come from"),
    (b"\xd0\xcf\x11\xe0", "an OLE document (old Word, Excel or PowerPoint)", _EXPORT),
    (b"%PDF", "a PDF document", _EXPORT),
    (b"%!PS", "a PostScript (EPS) document", _EXPORT),
    (b"\xc5\xd0\xd3\xc6", "a PostScript (EPS) document", _EXPORT),
    (b"PK\x03\x04", "a ZIP archive", "unpack it"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"\x93NUMPY", "a NumPy array file", _EXPORT),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video", "extract its frames as images"),
)


class ImageError(ValueError):
    """One image cannot be used. `reason` is a short code for counting, the message tells a person what to do.

    Reasons of stage "decode": empty, not_an_image, unsupported, corrupt_header, truncated (or corrupt), too_large,
    out_of_memory. Reasons of stage "read": missing, unreadable.
    """

    def __init__(self, reason: str, message: str, stage: str = "decode") -> None:
        super().__init__(reason, message, stage)  # pickling calls the class with exactly these
        self.reason = reason
        self.stage = stage

    def __str__(self) -> str:
        return str(self.args[1])


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """`decode` of one local file. Raises ImageError, with stage "read" where the bytes cannot be had."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        message = f"found no file {str(path)!r}, wanted an image; check the path and the list it comes from"
        raise ImageError("missing", message, stage="read") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        message = f"found {str(path)!r}, but cannot read it ({_one_line(error)}); check that it is a file you may open"
        raise ImageError("unreadable", message, stage="read") from error
    return decode(data, max_pixels)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The bytes of an image file as upright RGB: uint8 (H, W, 3), C-contiguous, writable. Safe to call from threads.

    Raises ImageError and nothing else for whatever is wrong with `data`. An image of more than `max_pixels` pixels is
    refused by its header, before its pixels are decoded.
    Pillow has a limit of its own, 178,956,970 where the host leaves it: a higher `max_pixels` does not raise it.
    """
    if not data:
        raise ImageError("empty", "found an empty file (0 bytes), wanted an image; fetch it again")
    try:
        return _decode_png_without_tail(data, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly any type, from SyntaxError to struct.error
        raise _explain(error, data, max_pixels) from error


def _decode_png_without_tail(data: bytes, max_pixels: int) -> np.ndarray:
    """`_decode`, and once more without the chunk that the end of a PNG file cuts off.

    Pillow refuses such a file even where all pixels come before that chunk; where they do not, it refuses both.
    """
    try:
        return _decode(data, max_pixels)
    except OSError as error:
        whole = _whole_png_chunks(data)
        if len(whole) < len(data):
            with contextlib.suppress(OSError):
                return _decode(whole, max_pixels)
        raise error


def _whole_png_chunks(data: bytes) -> bytes:
    """A PNG file up to the first chunk that does not fit in it; any other file as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    end = 8
    while (following := end + 12 + int.from_bytes(data[end : end + 4], "big")) <= len(data):
        end = following  # a chunk is its length (4 bytes), name (4), content and checksum (4)
    return data[:end]


def _decode(data: bytes, max_pixels: int) -> np.ndarray:
    """As `decode`, but what goes wrong inside Pillow comes out as Pillow raises it."""
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        _check_size(image, max_pixels)
        image.load()  # before the orientation is read: Pillow turns TIFFs by itself, here
        _check_size(image, max_pixels)  # an icon's header and the picture inside may tell two sizes
        rgb, method = _rgb(image), _upright_method(image)
        return _pixels(rgb if method is None else rgb.transpose(method))


def _formats() -> list[str]:
    """The formats to try, in Pillow's order; those that plug-ins of the host program added included."""
    return [name for name in Image.ID if name not in _REFUSED_FORMATS]


def _check_size(image: Image.Image, max_pixels: int) -> None:
    size = f"an image of {image.width} x {image.height} pixels"
    if image.width < 1 or image.height < 1:
        raise ImageError("corrupt_header", f"found {size}, wanted at least 1 x 1; fetch the file again")
    if image.width * image.height > max_pixels:
        raise _too_large(size, max_pixels)


def _pixels(rgb: Image.Image) -> np.ndarray:
    """An RGB image's pixels, (H, W, 3) uint8, in memory of their own.

    Pillow keeps four bytes a pixel, which Arrow can look at, and OpenCV drops the fourth while other threads run; what
    `np.array` asks of Pillow lets none of them run, and is what sixteen decoding threads would wait for.
    """
    try:
        four = pa.array(rgb).flatten()
    except ValueError:  # above 16 MiB an image lies in several pieces
        return np.array(rgb)
    pixels = np.frombuffer(four.buffers()[1], np.uint8, len(four), four.offset)  # `to_numpy` takes a second for pandas
    return cv2.cvtColor(pixels.reshape(rgb.height, rgb.width, 4), cv2.COLOR_RGBA2RGB)


def _upright_method(image: Image.Image) -> Image.Transpose | None:
    """What turns a loaded image upright; None where it is, says nothing, or has broken metadata."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # metadata breaks in as many ways as pixels do, and is not worth an image
        return None


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB, 8 bits a channel; the policies are in the module docstring."""
    if image.mode.startswith("I"):  # I, and I;16 in every byte order
        image = Image.fromarray(_from_16_bits(np.asarray(image)))
    elif image.mode == "F":
        image = Image.fromarray(_from_floats(np.asarray(image)))
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _from_16_bits(grey: np.ndarray) -> np.ndarray:
    """(H, W) integers of 0 to 65535 to uint8, 65535 to 255."""
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        message = f"found integer pixels from {low} to {high}, wanted 8 or 16 bits (0 to 65535); {_EXPORT}"
        raise ImageError("unsupported", message)
    return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 257 is odd: + 128 rounds, and no ties exist


def _from_floats(grey: np.ndarray) -> np.ndarray:
    """(H, W) float32 to uint8: [0, 1] to 0..255 if all values lie there, else 0..255 as it is, clipped."""
    finite = np.where(np.isfinite(grey), grey, 0)
    scale = 255 if finite.min() >= 0 and finite.max() <= 1 else 1
    return np.rint(np.clip(finite, 0, 255 / scale) * scale).astype(np.uint8)


def _explain(error: Exception, data: bytes, max_pixels: int) -> ImageError:
    """What Pillow raised over `data`, as one of our reasons and a line for a person."""
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(f"too many pixels ({_one_line(error)})", max_pixels)
    if isinstance(error, MemoryError):
        message = f"found no memory left for an image file of {len(data)} bytes; decode fewer at once or shrink it"
        return ImageError("out_of_memory", message)
    if (recognised := _other_file(data)) is not None:
        return recognised
    if isinstance(error, UnidentifiedImageError):
        return _explain_unidentified(data)
    if isinstance(error, NotImplementedError) or _UNSUPPORTED.search(str(error)):
        return _unsupported(_one_line(error))
    message = f"found truncated or corrupt image data ({_one_line(error)}), wanted a whole file; fetch it again"
    return ImageError("truncated", message)


def _explain_unidentified(data: bytes) -> ImageError:
    """Pillow knows no format that fits: its header is damaged or unusual, or it never was an image."""
    claim = _claim(data)
    if claim is not None and _UNSUPPORTED.search(claim):
        return _unsupported(claim)
    if claim is not None:
        return ImageError("corrupt_header", f"found a damaged header ({claim}), wanted a whole file; fetch it again")
    return _not_an_image(_text_kind(data) or f"unknown data (it starts with {data[:8]!r})", "leave the file out")


def _claim(data: bytes) -> str | None:
    """Format and complaint of the first Pillow plug-in that knows the file's first bytes, None if none does."""
    prefix = data[:16].ljust(16, b"\0")  # some plug-ins fail on less
    for name in _formats():
        factory, accept = Image.OPEN[name]
        if accept is None or not (claimed := accept(prefix)):
            continue
        try:
            factory(io.BytesIO(data), "")
        except Exception as error:
            return f"{name}: {claimed if isinstance(claimed, str) else _one_line(error)}"
    return None


def _other_file(data: bytes) -> ImageError | None:
    """The error for a file recognised, by its first bytes, as something Pillow does not decode."""
    for start, kind, advice in _OTHER_FILES:
        if data.startswith(start):
            return _not_an_image(kind, advice)
    if data[4:8] != b"ftyp":  # the ISO container of HEIF, AVIF and MP4: its length, "ftyp", then four-letter brands
        return None
    if any(brand in data[8:40] for brand in (b"heic", b"heix", b"hevc")) and "HEIF" not in Image.OPEN:
        return ImageError("unsupported", f"found a HEIF image, which needs a plug-in for Pillow; {_EXPORT}")
    if data[8:10] in (b"is", b"mp", b"qt", b"M4"):
        return _not_an_image("an MP4 or QuickTime video", "extract its frames as images")
    return None


def _text_kind(data: bytes) -> str | None:
    """What kind of text a file is, None if it is none."""
    start = data[:2048].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"<") and b"<svg" in start:
        return "an SVG vector file"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if start.startswith(b"<?xml"):
        return "an XML file"
    control_characters = set(range(32)) - set(b"\t\n\f\r\x1b")
    return "plain text" if start and control_characters.isdisjoint(start) and start.isascii() else None


def _not_an_image(kind: str, advice: str) -> ImageError:
    return ImageError("not_an_image", f"found {kind}, wanted an image; {advice}")


def _too_large(size: str, max_pixels: int) -> ImageError:
    return ImageError("too_large", f"found {size}, wanted at most {max_pixels} pixels; shrink it before extraction")


def _unsupported(complaint: str) -> ImageError:
    return ImageError("unsupported", f"found an image that Pillow cannot decode ({complaint}); {_EXPORT}")


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)  # some quote what stands in the file


def resize_shortest_edge(image: np.ndarray, shorter: int, longer: int) -> np.ndarray:
    """uint8 (H, W, 3) to uint8 (h, w, 3) by `resized_shape`, anti-aliased when it shrinks; any channel order.

    As facebookresearch/detectron2:detectron2/data/transforms/transform.py, ResizeTransform: Pillow's BILINEAR on uint8.
    """
    height, width = resized_shape(image.shape[0], image.shape[1], shorter, longer)
    return _resized(image, (width, height), Image.Resampling.BILINEAR)


def caffe_scale(height: int, width: int, shorter: int, longer: int) -> float:
    """Resized size over original size, as MILVLG/bottom-up-attention.pytorch:utils/extract_utils.py, get_image_blob.

    Unlike `resized_shape` it lets the longer side exceed `longer` by what numpy.round, half to even, takes away.
    """
    scale = shorter / min(height, width)
    return longer / max(height, width) if np.round(scale * max(height, width)) > longer else scale


def resize_caffe(image: np.ndarray, mean: Sequence[float], shorter: int, longer: int) -> tuple[np.ndarray, float]:
    """uint8 (H, W, 3) to float32 (h, w, 3) less `mean`, and the scale from the original to it.

    `mean` is in the image's channel order. As MILVLG/bottom-up-attention.pytorch:utils/extract_utils.py,
    get_image_blob: the mean goes first, then OpenCV's bilinear without anti-aliasing, by the factor and not by a size.
    """
    height, width = image.shape[:2]
    scale = caffe_scale(height, width, shorter, longer)
    centred = image.astype(np.float32)
    centred -= np.asarray(mean, np.float64)  # subtracted in float64, then rounded to float32
    # OpenCV rounds the new sides by itself and fails at 0. Only then a size is given, which replaces the factor.
    thin = round(min(height, width) * scale) < 1
    size = (max(1, round(width * scale)), max(1, round(height * scale))) if thin else None
    return cv2.resize(centred, size, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR), scale


def resize_to_patches(image: np.ndarray, shorter: int, patch: int = 32) -> np.ndarray:
    """uint8 (H, W, 3) to uint8 (h, w, 3), h and w whole patches: by `resized_shape`, rounded down, at least one patch.

    The longer side is at most 1333/800 of `shorter`. As dandelin/ViLT:vilt/transforms/utils.py, MinMaxResize: Pillow's
    BICUBIC on uint8.
    """
    shape = resized_shape(image.shape[0], image.shape[1], shorter, int(1333 / 800 * shorter))
    height, width = (max(patch, side // patch * patch) for side in shape)
    return _resized(image, (width, height), Image.Resampling.BICUBIC)


def resize_truncated(image: np.ndarray, shorter: int, longer: int) -> np.ndarray:
    """uint8 (H, W, 3) to uint8 (h, w, 3), each side cut to whole pixels and at least one.

    As jackroos/VL-BERT:pretrain/data/transforms/transforms.py, Resize: Pillow's BILINEAR on uint8.
    """
    height, width = image.shape[:2]
    low, high = min(height, width), max(height, width)
    side = shorter if high / low * shorter <= longer else int(longer * low / high)
    other = max(1, int(side * high / low))
    size = (max(1, side), other) if width < height else (other, max(1, side))
    return _resized(image, size, Image.Resampling.BILINEAR)


def resampled(image: Image.Image, size: tuple[int, int], kind: Image.Resampling) -> Image.Image:
    """Resized to a size (w, h) by Pillow: first the rows, then the columns, as it did for the official codes.

    In one call it begins with the columns since version 13 where they lose more than twice the pixels that the rows
    lose, and one byte in five is another.
    """
    return image.resize((size[0], image.height), kind).resize(size, kind)


def _resized(image: np.ndarray, size: tuple[int, int], kind: Image.Resampling) -> np.ndarray:
    """uint8 (H, W, 3) to uint8 (h, w, 3) of a size (w, h), by Pillow; an image of that size as it is."""
    return image if size == image.shape[1::-1] else _pixels(resampled(Image.fromarray(image), size, kind))
