"""The picture of a scene: its things with texture, light and shadow, before a blurred photograph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from trainers.scenes.looks import COLOURS, KINDS
from trainers.scenes.scene import Scene, Thing, chance

FINER = 2  # things are drawn so many times as large, and reduced: smooth edges
BLUR = 6.0  # pixels; no word of a photograph can be read behind it
QUALITY = 90  # of the JPEG
DARK = 60  # a colour whose brightest channel is below has lighter marks, others have darker ones


def draw(scene: Scene, photographs: Sequence[Path]) -> Image.Image:
    """The picture, RGB.

    Args:
        photographs: what backgrounds are cut from; not empty.
    """
    rng = chance(scene.seed, scene.number, 1)
    canvas = _background(scene, photographs, rng)
    for thing in scene.things:
        _add(canvas, thing, rng)
    return Image.fromarray(canvas)


def _background(scene: Scene, photographs: Sequence[Path], rng: np.random.Generator) -> np.ndarray:
    photo = _photograph(photographs[int(rng.integers(len(photographs)))])
    scale = rng.uniform(0.4, 0.9) * min(photo.width / scene.width, photo.height / scene.height)
    wide, high = int(scene.width * scale), int(scene.height * scale)
    x, y = int(rng.integers(photo.width - wide + 1)), int(rng.integers(photo.height - high + 1))
    # blurred at a quarter of the size: the same to the eye, and a tenth of the time
    small = photo.resize((scene.width // 4, scene.height // 4), Image.Resampling.BOX, (x, y, x + wide, y + high))
    small = small.filter(ImageFilter.GaussianBlur(BLUR / 4))
    if rng.random() < 0.5:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    large = small.resize((scene.width, scene.height), Image.Resampling.BICUBIC)
    faded = np.asarray(large, np.float32) * rng.uniform(0.55, 0.85) + rng.uniform(20, 70)
    return np.clip(faded, 0, 255).astype(np.uint8)


@cache
def _photograph(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _add(canvas: np.ndarray, thing: Thing, rng: np.random.Generator) -> None:
    """Lay a thing on the canvas, with its shadow."""
    x, y, side = thing.square
    mask, light = _outline(thing.kind, side)
    colour = np.array(COLOURS[thing.colour], np.float32)
    marks = colour * 0.5 if colour.max() > DARK else colour * 0.5 + 110
    marked = _texture(thing.texture, side)[..., None]
    body = (colour * (1 - marked) + marks * marked) * light[..., None] * _gradient(side)[..., None]
    below = int(side * 0.04) + 1
    _blend(canvas, x + below, y + below, np.zeros(3, np.float32), mask * 0.35)
    _blend(canvas, x, y, np.clip(body + rng.normal(0, 3, (side, side, 1)), 0, 255), mask)


def _blend(canvas: np.ndarray, x: int, y: int, body: np.ndarray, mask: np.ndarray) -> None:
    high, wide = (
        min(len, room) for len, room in zip(mask.shape, (canvas.shape[0] - y, canvas.shape[1] - x), strict=True)
    )
    seen = mask[:high, :wide, None]
    place = canvas[y : y + high, x : x + wide]
    own = body if body.ndim == 1 else body[:high, :wide]
    place[...] = (place * (1 - seen) + own * seen).astype(np.uint8)


def _outline(kind: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(side, side) float32 each: how much of a pixel is the thing's, and the light of its part there."""
    fine = side * FINER
    mask, light = Image.new("L", (fine, fine)), Image.new("L", (fine, fine), 100)
    for part in KINDS[kind]:
        points = [each * (fine - 1) for each in part.points]
        for image, value in ((mask, 255 if part.light else 0), (light, round(100 * part.light))):
            canvas = ImageDraw.Draw(image)
            (canvas.ellipse if part.form == "ellipse" else canvas.polygon)(points, fill=value)
    whole, lit = (np.asarray(image.reduce(FINER), np.float32) for image in (mask, light))
    return whole / 255, lit / 100


@cache
def _gradient(side: int) -> np.ndarray:
    """Light from the upper left, (side, side) float32."""
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]
    return (1.12 - 0.14 * (x + y)).astype(np.float32)


@cache
def _texture(name: str, side: int) -> np.ndarray:
    """1 where a mark of the texture is, (side, side) float32."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    if name == "striped":
        marks = ((x + y) * 5) % 1 < 0.45
    elif name == "spotted":
        marks = ((x * 5) % 1 - 0.5) ** 2 + ((y * 5) % 1 - 0.5) ** 2 < 0.085
    elif name == "checkered":
        marks = ((x * 5).astype(int) + (y * 5).astype(int)) % 2 == 1
    else:
        marks = np.zeros((side, side), bool)
    return marks.astype(np.float32)


def save(scene: Scene, photographs: Sequence[Path], path: Path) -> None:
    """Write the picture of a scene as JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(scene, photographs).save(path, "JPEG", quality=QUALITY)
