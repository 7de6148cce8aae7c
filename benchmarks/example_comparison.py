"""Makes the example of `docs/`: all five models, cached and end to end, on three tasks, in minutes on one GPU.

    uv run python -m benchmarks.example_comparison --scratch scratch --result docs/comparisons/scenes

Protocol. --images scenes of seed 1 (the networks below were trained on those of seed 0) of one or two things, or as
many as --things says, their pictures made smaller, to the size that the networks were trained on. Then the comparison
`visual_inputs` of tiny twins, with the lines, updates, batches and rates of TRAINING below: one layer deeper (ViLT's
three), without dropout, and without RandAugment, which changes colours. METER sees by a ViT of
`benchmarks.train_example_vits`, and ViLT began with one. VQA and NLVR2 of all five begin with what
`benchmarks.pretrain_example` made: each has answered as many questions and judged as many sentences about other scenes.
What that took is not in the costs. METER's text encoder learns as fast as what fuses. Retrieval begins with the line's
run of NLVR2 with the same seed: what judges sentences tells captions, too. Lines end to end begin with the run of the
same task on the cache, and tune it, since an update of theirs takes several times as long; what VL-BERT makes of
features is fitted there, since its network's are not the detector's. Costs hold these runs that came before. Stores are
filled side by side; then each line is trained on each task with --seeds seeds, --processes cells at a time. No cell
begins later than --minutes after the start; the report names those that did not. Each process keeps the pictures that
it has decoded, since 16 cores would keep one GPU waiting: times end to end are those of a loader that keeps up. All
times are of a device, and of cores, that many cells share: read ratios. Retrieval is scored among RETRIEVED images.

Into --result go `report.html`, `results.md` and `results.parquet`; all else stays in --scratch. A run that was stopped
goes on by the same command.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from extractors import decode
from extractors.configs import SHIPPED_SIZE, PixelConfig
from pipeline.config import EngineConfig
from pipeline.processes import side_by_side
from trainers.config import Rule
from trainers.scenes.making import make_scenes
from workflows.compare import Compare
from workflows.scenes import BUNDLED

if TYPE_CHECKING:  # torch is loaded by what needs it: processes that draw begin with this file, too
    from trainers.comparison.result import CellResult
    from workflows.comparing.cells import Cell
    from workflows.comparing.running import Setting
    from workflows.recipes import Recipe

SEED, SEEDS = 1, (0, 1, 2)
METER_SIDE = 128  # pixels of what METER sees: 64 patches of 16
THINGS = (1, 2)  # of a scene, as in those that the starts saw; with 3 to 7 a tiny twin takes several times as long
RETRIEVED = 100  # images of validation, since every one is scored with every caption
DATA = ("coco_captions", "visual_genome", "vqav2", "nlvr2", "flickr30k")  # that the comparison reads
QUALITY = 95  # of the smaller pictures' JPEG
PATCH = 32  # pixels: their sides are whole patches of ViLT's, so that no line has to resize them again
EVALUATIONS = 3
LAYERS = 3  # of the transformers: with 2 a question's thing is hardly found among the others
VILT_LAYERS = 5  # what a patch shows is known after three; a text has to be able to ask for it
DECODERS, AT_ONCE = 3, 64  # of each extraction: processes that decode, and images in a batch
FILES = ("report.html", "results.md", "results.parquet")


@dataclass(frozen=True)
class Training:
    """How one run learns: updates, examples of each, and the largest rate."""

    steps: int
    batch_size: int
    lr: float


REGIONS = {
    "vqa": Training(600, 256, 1e-3),
    "nlvr2": Training(400, 256, 1e-3),
    "retrieval": Training(500, 32, 1e-3),
}
GRID = {
    "vqa": Training(1500, 64, 2.5e-4),
    "nlvr2": Training(2000, 64, 2.5e-4),
    "retrieval": Training(500, 32, 2.5e-4),
}
TUNED = {
    "vqa": Training(60, 64, 1e-4),
    "nlvr2": Training(60, 64, 1e-4),
    "retrieval": Training(60, 32, 1e-4),
}
TRAINING = {
    "VL-BERT, cached regions": REGIONS,
    "VL-BERT, pixels": TUNED,
    "Grid-VLP, cached grid": GRID,
    "Grid-VLP, pixels": TUNED,
    "PixelBERT, cached grid": GRID,
    "PixelBERT, pixels": TUNED,
    "ViLT, cached pixels": {
        "vqa": Training(1500, 64, 2.5e-4),
        "nlvr2": Training(2000, 64, 2.5e-4),
        "retrieval": Training(500, 32, 2.5e-4),
    },
    "ViLT, pixels": TUNED,
    "METER, cached patches": {
        "vqa": Training(1500, 64, 5e-5),
        "nlvr2": Training(2000, 64, 5e-5),
        "retrieval": Training(500, 32, 1e-4),
    },
    "METER, pixels": TUNED,
}
METER_TEXT = Rule(r"^text\.", lr=5)  # as the rest of METER but its image encoder
VITS, STARTS = (Path(__file__).parent / name for name in ("vits", "starts"))
VILT_START, METER_TOWER = (str(VITS / f"scenes-{name}.safetensors") for name in ("vit32", "vit16"))


def main() -> None:
    """Make scenes, compare, and put the report where it belongs."""
    asked, began = parsed(), time.time()
    data = scenes_of(asked.scratch, asked.images, SEED, asked.processes, tuple(asked.things))
    tell(began, f"{asked.images} scenes")
    out = compared(asked, data, began)
    asked.result.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(out / name, asked.result / name)


def compared(asked: argparse.Namespace, data: Path, began: float) -> Path:
    """Run the comparison; returns the folder with its report."""
    from workflows.comparing.command import Comparison

    out = asked.scratch / "comparison"
    flags = Compare(
        data=str(data),
        out=str(out),
        name="visual_inputs",
        starts=starts(),
        tokenizer=str(STARTS / "vocab.txt"),
        seeds=SEEDS[: asked.seeds],
        processes=asked.processes,
        device=asked.device,
        tiny=True,
    )
    command = shlex.join(["python", "-m", "benchmarks.example_comparison", *sys.argv[1:]])
    comparison = Comparison(flags, partial(in_time, deadline=began + 60 * asked.minutes), command)
    matrix, planned, setting = comparison.planned()
    cells = trained(planned, asked.share)
    cells.sort(key=lambda cell: (cell.recipe.train.seed, cell.recipe.task == "retrieval"))  # it waits for others
    filled(cells, setting, asked.processes)
    tell(began, "stores")
    lost = comparison.finish(matrix, cells, setting)
    tell(began, f"report, {len(lost)} cells missing")
    return out


def starts() -> tuple[str, ...]:
    """What models begin with, by recipe."""
    return tuple(f"{each.stem}={each}" for each in sorted(STARTS.glob("*.safetensors")))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for scenes, stores and runs")
    parser.add_argument("--result", type=Path, required=True, help="folder for the report")
    parser.add_argument("--images", type=int, default=4000, help="scenes")
    parser.add_argument("--things", type=int, nargs=2, default=THINGS, help="of a scene, at least and at most")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many, of each line")
    parser.add_argument("--minutes", type=float, default=5.0, help="no cell begins later")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="cells that run at once")
    parser.add_argument("--share", type=float, default=1.0, help="of the updates, and of the examples of each: a trial")
    parser.add_argument("--device", default="cuda")
    return parser.parse_args()


def tell(began: float, what: str) -> None:
    print(f"{time.time() - began:.0f} s  {what}", flush=True)


def scenes_of(scratch: Path, images: int, seed: int, processes: int, things: tuple[int, int]) -> Path:
    """The scenes, made if they are not there; their folder."""
    data = scratch / "scenes"
    if not (data / "reduced").exists():
        make_scenes(data, images, seed, BUNDLED, processes, things=things)
        reduced(data, processes)
    return data


def reduced(data: Path, processes: int) -> None:
    """Leave out what is not compared, and make pictures as large as the network that comes along takes them."""
    for folder in (data / "annotations").iterdir():
        if folder.name not in DATA:
            shutil.rmtree(folder)
    shutil.rmtree(data / "images/vcr", ignore_errors=True)  # of one thing there is nothing to ask there
    # A picture may have several names, all of which are to be smaller.
    pictures = {path.stat().st_ino: path for path in sorted((data / "images").rglob("*.jpg"))}.values()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(_smaller, pictures, chunksize=32))
    captions = data / "annotations/flickr30k/dataset_flickr30k.json"
    content = json.loads(captions.read_bytes())
    asked = [image["imgid"] for image in content["images"] if image["split"] == "val"][:RETRIEVED]
    content["images"] = [each for each in content["images"] if each["split"] != "val" or each["imgid"] in asked]
    captions.write_text(json.dumps(content), encoding="utf-8")
    (data / "reduced").touch()


def _smaller(path: Path) -> None:
    shorter, longer = SHIPPED_SIZE
    with Image.open(path) as image:
        scale = min(shorter / min(image.size), longer / max(image.size))
        if scale >= 1:
            return
        width, height = (round(side * scale / PATCH) * PATCH for side in image.size)
        smaller = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2)
    content = io.BytesIO()
    smaller.save(content, "JPEG", quality=QUALITY)
    path.write_bytes(content.getvalue())


def trained(
    planned: Sequence[Cell], share: float, lines: Mapping[str, Mapping[str, Training]] = TRAINING
) -> list[Cell]:
    """The cells of these lines and tasks, as they are to learn, each with what it begins with."""
    known = {
        (cell.model, cell.recipe.visual, cell.recipe.task, cell.recipe.train.seed): replace(
            cell, recipe=_set(cell, lines[cell.label], share), before=None
        )
        for cell in planned
        if cell.recipe.task in lines.get(cell.label, {})
    }

    def begun(model: str, visual: str, task: str, seed: int) -> Cell:
        before = None
        if visual == "pixels":
            before = begun(model, "store", task, seed)
        elif task == "retrieval":
            before = begun(model, "store", "nlvr2", seed)
        return replace(known[model, visual, task, seed], before=before)

    return [begun(*each) for each in known]


def _apt(recipe: Recipe) -> Recipe:
    """The recipe with a model that learns sooner."""
    from trainers.models.meter import MeterConfig
    from trainers.models.vilt import ViLTConfig

    layer = replace(recipe.model.layer, dropout=0.0, attention_dropout=0.0)
    layers = VILT_LAYERS if isinstance(recipe.model, ViLTConfig) else LAYERS
    model, train = replace(recipe.model, layer=layer, layers=layers), recipe.train
    if isinstance(model, MeterConfig):
        without = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
        model = replace(model, text=replace(model.text, settings={**model.text.settings, **without}))
        train = replace(train, rules=(*train.rules, METER_TEXT))
    return _sized(replace(recipe, model=model, train=train, augment=False))


def _sized(recipe: Recipe) -> Recipe:
    """For images of the size that all see, METER's smaller: the twins of models without a convolutional network have 64
    pixels a side."""
    from trainers.models.grid_vlp import GridVLPConfig
    from trainers.models.meter import MeterConfig
    from trainers.models.vilt import ViLTConfig

    shorter, longer = SHIPPED_SIZE
    if isinstance(recipe.model, ViLTConfig) and isinstance(recipe.extractor, PixelConfig):
        model = replace(recipe.model, side=shorter // recipe.model.patch)
        extractor = replace(recipe.extractor, shorter=shorter, longer=longer)
        return replace(recipe, side=shorter, model=model, extractor=extractor)
    if isinstance(recipe.model, GridVLPConfig):  # PixelBERT's maps are whole, as they are in its cache
        return replace(recipe, model=replace(recipe.model, pool=1))
    if isinstance(recipe.model, MeterConfig) and recipe.model.image:
        image = replace(recipe.model.image, size=METER_SIDE, weights=METER_TOWER)
        return replace(recipe, side=METER_SIDE, model=replace(recipe.model, image=image))
    return recipe


def _set(cell: Cell, line: Mapping[str, Training], share: float) -> Recipe:
    asked = line[cell.recipe.task]
    steps, size = max(2, round(share * asked.steps)), max(4, round(share * asked.batch_size))
    train = replace(cell.recipe.train, steps=steps, batch_size=size, lr=asked.lr, workers=1)
    once = cell.recipe.task == "retrieval" or cell.recipe.visual == "pixels"  # which takes as long as training does
    evaluations = 1 if once else EVALUATIONS
    return replace(_apt(cell.recipe), train=replace(train, evaluate_every=-(-steps // evaluations)))


def filled(cells: Sequence[Cell], setting: Setting, processes: int) -> None:
    """All stores, side by side: of each extractor one of NLVR2's pictures, which have their own names, and one of all
    others. What goes wrong, the comparison tells of."""
    from workflows.comparing.cells import in_order
    from workflows.comparing.features import features_of
    from workflows.comparing.running import extract_all

    needed: dict[tuple[str, bool], list[Cell]] = {}
    befores, own = in_order(cells)
    for cell in (*befores, *own):
        features = features_of(cell.recipe)
        if features:
            needed.setdefault((features.name, "nlvr2" in features.groups), []).append(cell)
    engine = EngineConfig(setting.out, decode_workers=DECODERS, batch_size=AT_ONCE)
    run = partial(extract_all, setting=setting, engine=engine)
    list(side_by_side(run, list(needed.values()), processes, {}))


@cache
def decoded(data: bytes) -> np.ndarray:
    """`extractors.decode`, of each picture once in a process."""
    found = decode(data)
    found.setflags(write=False)
    return found


def in_time(cell: Cell, setting: Setting, deadline: float) -> CellResult:
    """A cell's row, if there is time for it."""
    from trainers.comparison.result import saved
    from workflows.comparing.running import failed, run_cell
    from workflows.recipes import sources

    sources.decode = decoded
    if time.time() > deadline and saved(setting.folder(cell)) is None:
        return failed(cell, "not begun: its time was over")
    return run_cell(cell, setting)


if __name__ == "__main__":
    main()
