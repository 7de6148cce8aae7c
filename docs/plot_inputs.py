"""Draws docs/images/inputs_*.png: what each model reads, token by token, from the layout that it makes of a real batch.

    uv run python -m docs.plot_inputs

Two of the demo's photographs, resized far below what the models see, so that every token has room; the words are whole
ones instead of word pieces. Segments and positions are what the embedding tables were asked for, modality rows those
that the models add. Shapes in this file: N packed tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from extractors.configs import PatchConfig
from extractors.images import read_image, resize_to_patches
from trainers.batch import Batch, Cells, Pixels, Regions, Text, stack_pixels
from trainers.images import meter_square, square_pixels
from trainers.models import grid_vlp, meter, vilt, vl_bert
from trainers.models.layers import LayerConfig, Spans
from trainers.models.text_towers import TextTowerConfig

OUT = Path(__file__).parent / "images"
PHOTOS = [
    read_image(Path(__file__).parents[1] / "workflows/photos" / f"{name}.jpg") for name in ("coffee", "astronaut")
]
SENTENCES = (("[CLS]", "what", "is", "in", "it", "?", "[SEP]"), ("[CLS]", "a", "suit", "[SEP]"))
WORDS = ["<s>", "<pad>", "</s>", *sorted({word for words in SENTENCES for word in words})]
TINY = LayerConfig(dim=12, heads=3, hidden=12)
BOXES = (((160, 40, 470, 330), (195, 60, 425, 260), (325, 205, 520, 372)), ((150, 10, 290, 200), (300, 250, 510, 510)))
TEXT_COLOUR, VISUAL_COLOUR, OTHER_COLOUR = "#dbe9f6", "#fdebd0", "#e4e4e4"
SHORTER = 96  # pixels of a photograph's shorter side, for models of patches and cells
METER_SIDE = 48
CELL = 32  # pixels a side of a patch of ViLT, and of a cell
PIXEL_SHORTER = 192
SHADES = ("#8fbbe0", "#f2b46d", "#b7d7a8")
Photo = np.ndarray


@dataclass
class Token:
    """One column: a word or a piece of an image, and what is added to it by the name of the row."""

    name: str
    added: dict[str, str]
    piece: Photo | None = None

    @property
    def colour(self) -> str:
        if self.piece is not None:
            return VISUAL_COLOUR
        return OTHER_COLOUR if self.name.startswith(("[END", "[image", "<pad")) else TEXT_COLOUR


@dataclass
class Strip:
    """One sequence."""

    title: str
    tokens: list[Token]


@dataclass
class Sketch:
    """A photograph as a model gets it, with lines over it: (x1, y1, x2, y2) as fractions, and their labels."""

    photo: Photo
    lines: list[tuple[float, float, float, float]]
    labels: list[str]


@contextmanager
def asked(module: nn.Module) -> Iterator[list[Tensor]]:
    """The rows that an embedding table is asked for while the block runs."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    yield found
    handle.remove()


def texts(first: str = "[CLS]", last: str = "[SEP]", pad: str = "<pad>") -> Text:
    """The sentences as ids of WORDS, padded."""
    names = {"[CLS]": first, "[SEP]": last}
    rows = [torch.tensor([WORDS.index(names.get(word, word)) for word in words]) for words in SENTENCES]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=WORDS.index(pad))
    return Text(ids, torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None])


def piece(photo: Photo, box: Sequence[float]) -> Photo:
    """The part of a photograph in a box (x1, y1, x2, y2) of fractions."""
    height, width = photo.shape[:2]
    x1, x2 = (round(each * width) for each in box[::2])
    y1, y2 = (round(each * height) for each in box[1::2])
    return photo[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]


def cell_box(place: tuple[int, int], photo: Photo, cell: int) -> tuple[float, float, float, float]:
    """Where a cell of so many pixels lies in a photograph, as fractions; the last ones may be cut."""
    (row, column), (height, width) = place, photo.shape[:2]
    low, high = (column * cell / width, row * cell / height), ((column + 1) * cell / width, (row + 1) * cell / height)
    return *low, min(1.0, high[0]), min(1.0, high[1])


def split(tokens: list[Token], spans: Spans, titles: Sequence[str]) -> list[Strip]:
    """Packed tokens as one strip a sequence."""
    ends = np.cumsum(spans.lengths)
    return [
        Strip(title, tokens[end - length : end]) for title, end, length in zip(titles, ends, spans.lengths, strict=True)
    ]


def resized() -> list[Photo]:
    return [resize_to_patches(photo, SHORTER) for photo in PHOTOS]


def pixels_of(photos: Sequence[Photo]) -> Pixels:
    return stack_pixels([torch.from_numpy(photo).permute(2, 0, 1) for photo in photos])


# One function a model: its sketches and strips.


def of_vl_bert() -> tuple[list[Sketch], list[Strip]]:
    model = vl_bert.VLBert(vl_bert.VLBertConfig(TINY, 1, len(WORDS), 20, 4, heads=())).eval()
    sizes = torch.tensor([photo.shape[:2] for photo in PHOTOS], dtype=torch.float32)
    rows = [torch.tensor(boxes, dtype=torch.float32) for boxes in BOXES]
    boxes = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(boxes.shape[1]) < torch.tensor([len(each) for each in rows])[:, None]
    batch = Batch(texts(), Regions(boxes, sizes, mask, torch.zeros(*boxes.shape[:2], 4)))
    layout = model.layout(batch)
    with asked(model.segment) as segments, asked(model.position) as positions:
        states = model(replace(batch, layout=layout))
    counts = [1 + len(each) for each in BOXES]
    images = [(image, number) for image, count in enumerate(counts) for number in range(count)]
    words, tokens = len(layout.text_rows), []
    for row, position in zip(layout.order.tolist(), positions[0].tolist(), strict=True):
        added = {"segment": str(int(segments[0][row])), "position": str(position)}
        if row < words:
            image, number = images[int(layout.text_images[row])]
            name, word, shown = WORDS[int(batch.text.ids.flatten()[layout.text_rows[row]])], "its own", None
        elif row < words + len(layout.region_of):
            image, number = images[int(layout.region_of[row - words])]
            name, word, shown = f"box {number}" if number else "whole", "shared", region(image, number)
        else:
            name, word, shown, number = "[END]", "its own", None, -1
        seen = "none" if number < 0 else f"box {number}" if number else "whole"
        tokens.append(Token(name, {"word part": word, "visual part": seen, **added}, shown))
    sketches = [
        Sketch(photo, [fractions(photo, box) for box in boxes_], [f"box {number + 1}" for number in range(len(boxes_))])
        for photo, boxes_ in zip(PHOTOS, BOXES, strict=True)
    ]
    return sketches, split(tokens, states.spans, ("question", "caption"))


def region(image: int, number: int) -> Photo:
    """The pixels of a region; 0 is the whole image."""
    photo = PHOTOS[image]
    return photo if number == 0 else piece(photo, fractions(photo, BOXES[image][number - 1]))


def fractions(photo: Photo, box: Sequence[float]) -> tuple[float, float, float, float]:
    height, width = photo.shape[:2]
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def of_vilt() -> tuple[list[Sketch], list[Strip]]:
    model = vilt.ViLT(vilt.ViLTConfig(TINY, 1, len(WORDS), 20, heads=())).eval()
    photos = resized()
    batch = Batch(texts(), pixels_of(photos))
    layout = model.layout(batch)
    with asked(model.text.position) as positions:
        states = model(replace(batch, layout=layout))
    words, tokens = len(layout.text_rows), []
    for row in layout.order.tolist():
        if row < words:
            name = WORDS[int(batch.text.ids.flatten()[layout.text_rows[row]])]
            tokens.append(Token(name, {"modality": str(vilt.TEXT), "position": str(int(positions[0][row]))}))
            continue
        modality = {"modality": str(vilt.IMAGE)}
        if row < words + len(photos):
            tokens.append(Token("[image]", {**modality, "position": "its own"}))
            continue
        number = row - words - len(photos)
        image, down, across = layout.patches[:, number].tolist()
        y, x = layout.places[number].tolist()
        shown = piece(photos[image], cell_box((down, across), photos[image], CELL))
        tokens.append(Token(f"{down},{across}", {**modality, "position": f"{y:.3g}, {x:.3g}"}, shown))
    strips = split(tokens, states.spans, ("question", "caption"))
    return [gridded(photo, CELL) for photo in photos], strips


def gridded(photo: Photo, cell: int) -> Sketch:
    """A photograph with the lines of its cells."""
    [(down, across)] = grids_of([photo], cell)
    places = [(row, column) for row in range(down) for column in range(across)]
    return Sketch(
        photo, [cell_box(place, photo, cell) for place in places], [f"{row},{column}" for row, column in places]
    )


Where = dict[int, tuple[int, tuple[int, int]]]  # a cell's number among all to its image, and row and column


def of_grid_vlp() -> tuple[list[Sketch], list[Strip]]:
    """Fine-tuning with all cells, and pre-training with a drawn part: 5 here, 100 in earnest."""
    photos = resized()
    grids = grids_of(photos, CELL)
    lengths = torch.tensor([down * across for down, across in grids])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    batch = Batch(texts(), Cells(torch.zeros(*mask.shape, 4), mask, tuple(grids)))
    where = {
        image * mask.shape[1] + number: (image, divmod(number, across))
        for image, (down, across) in enumerate(grids)
        for number in range(down * across)
    }
    model = grid_vlp.GridVLP(grid_vlp.GridVLPConfig(TINY, 1, len(WORDS), 20, 4, sampled=5, heads=()))
    torch.manual_seed(0)
    strips = [
        Strip(f"{stage}: {strip.title}", strip.tokens)
        for stage, training in (("fine-tuning", False), ("pre-training", True))
        for strip in cell_strips(model.train(training), batch, photos, where, CELL)
    ]
    return [gridded(photo, CELL) for photo in photos], strips


def of_pixel_bert() -> tuple[list[Sketch], list[Strip]]:
    """Cells of 64 x 64 pixels: the largest of 2 x 2 of the network's; an odd row or column stands alone."""
    photos = [resize_to_patches(photo, PIXEL_SHORTER) for photo in PHOTOS]
    body = grid_vlp.ResNetConfig(50).narrowed(64)
    config = grid_vlp.GridVLPConfig(TINY, 1, len(WORDS), 20, body.out_channels(5), body, tuned=True, pool=2, heads=())
    grids, where = grids_of(photos, 2 * CELL), {}
    for image, (down, across) in enumerate(grids):  # the network sees shape after shape: here, image after image
        where |= {len(where) + number: (image, divmod(number, across)) for number in range(down * across)}
    strips = cell_strips(grid_vlp.GridVLP(config).eval(), Batch(texts(), pixels_of(photos)), photos, where, 2 * CELL)
    return [gridded(photo, 2 * CELL) for photo in photos], strips


def grids_of(photos: Sequence[Photo], cell: int) -> list[tuple[int, int]]:
    return [(-(-photo.shape[0] // cell), -(-photo.shape[1] // cell)) for photo in photos]


def cell_strips(model: Any, batch: Batch, photos: Sequence[Photo], where: Where, cell: int) -> list[Strip]:
    """What a Grid-VLP or PixelBERT makes of a batch."""
    layout = model.layout(batch)
    with asked(model.text.position) as positions:
        states = model(replace(batch, layout=layout))
    words, tokens = len(layout.text_rows), []
    for row in layout.order.tolist():
        if row < words:
            name = WORDS[int(batch.text.ids.flatten()[layout.text_rows[row]])]
            tokens.append(Token(name, {"modality": str(grid_vlp.TEXT), "position": str(int(positions[0][row]))}))
            continue
        image, place = where[int(layout.cells[row - words])]
        shown = piece(photos[image], cell_box(place, photos[image], cell))
        added = {"modality": str(grid_vlp.IMAGE), "position": "none"}
        tokens.append(Token(f"{place[0]},{place[1]}", added, shown))
    return split(tokens, states.spans, ("question", "caption"))


def of_meter() -> tuple[list[Sketch], list[Strip]]:
    """Two streams a pair: a padded text, and a square image of CLIP B/16, at 48 pixels."""
    clip = PatchConfig(model="timm:vit_base_patch16_clip_quickgelu_224", weights="random:0", layer=-2, size=METER_SIDE)
    settings = {"vocab_size": len(WORDS), "pad_token_id": WORDS.index("<pad>"), "num_hidden_layers": 1}
    text = TextTowerConfig("roberta", "random:0", settings)
    model = meter.Meter(meter.MeterConfig(text, clip, layer=TINY, layers=1, heads=())).eval()
    square = meter_square(METER_SIDE)
    photos = [square.of(photo) for photo in PHOTOS]
    batch = Batch(texts("<s>", "</s>"), square_pixels(PHOTOS, square))
    embeddings: Any = model.text.model.embeddings
    with asked(embeddings.position_embeddings) as positions:
        states = model(batch)
    side, strips = METER_SIDE // 16, []
    for row, (photo, title) in enumerate(zip(photos, ("question", "caption"), strict=True)):
        ids = batch.text.ids[row].tolist()
        counted = positions[0].expand(len(PHOTOS), -1)[row].tolist()
        words = [
            Token(WORDS[each], {"modality": str(meter.TEXT), "position": str(place)})
            for each, place in zip(ids, counted, strict=True)
        ]
        places = [divmod(number, side) for number in range(states.image.shape[1] - 1)]
        modality = {"modality": str(meter.IMAGE)}
        patches = [
            Token(
                f"{y},{x}",
                {**modality, "position": str(1 + y * side + x)},
                piece(photo, cell_box((y, x), photo, 16)),
            )
            for y, x in places
        ]
        strips.append(Strip(f"{title}: text stream", words))
        strips.append(Strip(f"{title}: image stream", [Token("[image]", {**modality, "position": "0"}), *patches]))
    return [gridded(photo, 16) for photo in photos], strips


# Drawing.


def draw_strip(axes: Axes, strip: Strip, width: int) -> None:
    """A strip as a table: name, piece of the image, and a row for everything that is added."""
    rows = list(strip.tokens[0].added)
    top = len(rows)
    for column, token in enumerate(strip.tokens):
        axes.add_patch(Rectangle((column, top), 1, 2, facecolor=token.colour, edgecolor="white", linewidth=1.5))
        if token.piece is None:
            axes.text(column + 0.5, top + 1, token.name, ha="center", va="center", rotation=90, fontsize=8)
        else:
            axes.imshow(
                token.piece, extent=(column + 0.07, column + 0.93, top + 0.75, top + 1.93), aspect="auto", zorder=3
            )
            axes.text(column + 0.5, top + 0.4, token.name, ha="center", va="center", fontsize=7)
        for number, name in enumerate(rows):
            low = top - 1 - number
            axes.add_patch(Rectangle((column, low), 1, 1, facecolor=shade(name, token.added[name]), edgecolor="white"))
            axes.text(
                column + 0.5, low + 0.5, token.added[name].replace(" ", "\n"), ha="center", va="center", fontsize=7
            )
    for number, name in enumerate(rows):
        axes.text(-0.2, top - 0.5 - number, name, ha="right", va="center", fontsize=8)
    axes.text(-0.2, top + 1, strip.title.replace(": ", ":\n"), ha="right", va="center", fontsize=9, fontweight="bold")
    axes.set_xlim(-3.2, width)
    axes.set_ylim(0, top + 2)
    axes.axis("off")


def shade(row: str, value: str) -> str:
    """Segments and modalities by their number, the rest plain."""
    if row in ("segment", "modality"):
        return SHADES[int(value)]
    return "#f4f4f4"


def draw_sketch(axes: Axes, sketch: Sketch) -> None:
    """A photograph with its boxes or cells."""
    height, width = sketch.photo.shape[:2]
    axes.imshow(sketch.photo)
    for (x1, y1, x2, y2), label in zip(sketch.lines, sketch.labels, strict=True):
        corner, size = (x1 * width, y1 * height), ((x2 - x1) * width, (y2 - y1) * height)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="#ffe14d", linewidth=1.5))
        if label.startswith("box"):
            mark = {"facecolor": "#ffe14d", "edgecolor": "none", "pad": 1.0}
            axes.text(corner[0] + 4, corner[1] + 4, label, fontsize=6, va="top", bbox=mark)
    axes.axis("off")


def draw(name: str, sketches: Sequence[Sketch], strips: Sequence[Strip]) -> Path:
    """One model's picture."""
    width = max(len(strip.tokens) for strip in strips)
    rows = [len(strip.tokens[0].added) + 2 for strip in strips]
    heights = [5, *rows]
    figure = plt.figure(figsize=(0.52 * (width + 3.2), 0.36 * (sum(heights) + len(heights))))
    grid = figure.add_gridspec(len(heights), len(sketches), height_ratios=heights, hspace=0.25)
    for number, sketch in enumerate(sketches):
        draw_sketch(figure.add_subplot(grid[0, number]), sketch)
    for number, strip in enumerate(strips, 1):
        draw_strip(figure.add_subplot(grid[number, :]), strip, width)
    path = OUT / f"inputs_{name}.png"
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": ""})
    plt.close(figure)
    return path


MODELS = {
    "vl_bert": of_vl_bert,
    "vilt": of_vilt,
    "meter": of_meter,
    "grid_vlp": of_grid_vlp,
    "pixel_bert": of_pixel_bert,
}


def main() -> None:
    for name, make in MODELS.items():
        with torch.inference_mode():
            print(draw(name, *make()))


if __name__ == "__main__":
    main()
