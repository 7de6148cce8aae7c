"""Makes the two small ViTs that ViLT and METER start from in the example of `docs/`: scenes, training, scores.

    uv run python -m benchmarks.train_example_vits --scratch scratch --out benchmarks/vits

Protocol. --images scenes of seed 0 with the bundled photographs, as squares of 128 or 224 pixels. Each ViT is told of
every patch which kind, colour and texture the foremost thing has whose box holds the patch's centre, or that there is
none; from random weights, on the scenes of the training split, mirrored and cut out by chance, in batches of 32,
--minutes on one thread each, side by side. Layers' matrices learn by Muon at 0.01, all else by AdamW at 0.001: in four
minutes scenes-vit16 tells 26 % of kinds so, 7 % by AdamW alone. With --start they go on from the weights there, but for
what tells. What is written is scored on the validation split: how many of the patches with a thing are given its kind,
colour and texture.

`scenes-vit16` is timm's test_vit for 128 pixels, in CLIP's colours, as METER takes its images; `scenes-vit32` has the
form of ViLT's tiny twin with five layers, and is told after the third: what its patches show is then there for two
layers in which a text can ask for it, which are as random as they began. Weights are rounded to float16. Into --result
goes example_vits_<hardware>_<date>.md and .json.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.machine import asked, hardware, table, write_results
from trainers.images import CLIP_MEAN, CLIP_STD
from trainers.scenes.looks import COLOURS, KINDS, TEXTURES
from trainers.scenes.making import make_scenes, splits
from trainers.scenes.official import coco_path
from trainers.scenes.scene import make_scene
from workflows.scenes import BUNDLED

SEED, BATCH, WARM = 0, 32, 0.05
RATE, MATRIX_RATE = 1e-3, 1e-2  # of AdamW; of Muon
MOST = 7  # things of a scene
NOTHING = 0.15  # the weight of a patch without a thing, since most are
SIZES = (len(KINDS) + 1, len(COLOURS), len(TEXTURES))
PARTS = ("kind", "colour", "texture")


@dataclass(frozen=True)
class Form:
    """A ViT's form, after which of its layers it is told, and the sides and colours of what it sees."""

    side: int
    patch: int
    dim: int
    depth: int
    told: int
    heads: int
    mlp: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def make(self) -> nn.Module:
        return timm.models.vision_transformer.VisionTransformer(
            img_size=self.side, patch_size=self.patch, embed_dim=self.dim, depth=self.depth, num_heads=self.heads,
            mlp_ratio=self.mlp, num_classes=0,
        )  # fmt: skip

    def states(self, vit: Any, pixels: Tensor) -> Tensor:
        """(B, P, D): the patches after the layer that is told, normalised."""
        [found] = vit.forward_intermediates(
            pixels, [self.told - 1], norm=True, stop_early=True, output_fmt="NLC", intermediates_only=True
        )
        return found


HALF = (0.5, 0.5, 0.5)
FORMS = {
    "scenes-vit16": Form(128, 16, 64, 6, 6, 2, 3, CLIP_MEAN, CLIP_STD),
    "scenes-vit32": Form(224, 32, 128, 5, 3, 4, 2, HALF, HALF),
}


def loaded(folder: Path, images: int, side: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, side, side, 3) uint8 pictures; (n, 7, 7) float32 things: box in pixels, kind, colour, texture; -1 behind the
    last."""
    looks = [list(KINDS), list(COLOURS), list(TEXTURES)]
    numbers = splits(images)[split]
    pixels = np.zeros((len(numbers), side, side, 3), np.uint8)
    things = np.full((len(numbers), MOST, 7), -1, np.float32)
    for row, number in enumerate(numbers):
        scene = make_scene(SEED, number)
        with Image.open(folder / "images/coco" / coco_path(scene, split)) as image:
            pixels[row] = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        for at, each in enumerate(scene.things):
            box = np.array(each.box) / np.array([scene.width, scene.height] * 2) * side
            of = (each.kind, each.colour, each.texture)
            things[row, at] = [*box, *(known.index(name) for known, name in zip(looks, of, strict=True))]
    return pixels, things


def told(things: Tensor, side: int, patch: int) -> Tensor:
    """(n, P, 3) int64: kind, colour and texture of the foremost thing at each patch's centre; else "none", -1, -1."""
    count = side // patch
    centres = (torch.arange(count) + 0.5) * patch
    y, x = (each.flatten() for each in torch.meshgrid(centres, centres, indexing="ij"))
    found = torch.full((len(things), count * count, 3), -1)
    found[..., 0] = len(KINDS)
    for each in things.unbind(1):  # from back to front
        x1, y1, x2, y2 = (each[:, at : at + 1] for at in range(4))
        inside = (each[:, 4:5] >= 0) & (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        found = torch.where(inside[..., None], each[:, None, 4:].long(), found)
    return found


def changed(pixels: Tensor, things: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures cut out, six to ten tenths of a side, and mirrored by chance, their boxes with them."""
    count, side = len(pixels), pixels.shape[-1]
    part, mirrored = 0.6 + 0.4 * torch.rand(count), torch.rand(count) < 0.5
    left, top = torch.rand(count) * (1 - part), torch.rand(count) * (1 - part)
    turn = torch.zeros(count, 2, 3)
    turn[:, 0, 0], turn[:, 1, 1] = torch.where(mirrored, -part, part), part
    turn[:, 0, 2], turn[:, 1, 2] = 2 * left + part - 1, 2 * top + part - 1
    grid = functional.affine_grid(turn, list(pixels.shape), align_corners=False)
    seen = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    start = torch.stack([left, top, left, top], 1)[:, None] * side
    boxes = (things[..., :4] - start) / part[:, None, None]
    other = torch.stack([side - boxes[..., 2], boxes[..., 1], side - boxes[..., 0], boxes[..., 3]], -1)
    boxes = torch.where(mirrored[:, None, None], other, boxes)
    return seen, torch.cat([boxes, things[..., 4:]], -1)


class Task:
    """Pictures and what is told of them, for one form."""

    def __init__(self, form: Form, pixels: np.ndarray, things: np.ndarray) -> None:
        self.form, self.pixels, self.things = form, pixels, things

    def batch(self, rows: np.ndarray, change: bool) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(each)[:, None, None] for each in (self.form.mean, self.form.std))
        pixels, things = (pixels - mean) / std, torch.from_numpy(self.things[rows])
        pixels, things = changed(pixels, things) if change else (pixels, things)
        return pixels, told(things, self.form.side, self.form.patch)


def loss_of(outputs: Tensor, wanted: Tensor) -> Tensor:
    kind, colour, texture = outputs.split(SIZES, -1)
    there = wanted[..., 1] >= 0
    weights = torch.where(there, 1.0, NOTHING)
    kinds = functional.cross_entropy(kind.flatten(0, 1), wanted[..., 0].flatten(), reduction="none")
    loss = (kinds * weights.flatten()).sum() / weights.sum()
    if there.any():
        loss = loss + functional.cross_entropy(colour[there], wanted[there][:, 1])
        loss = loss + 0.5 * functional.cross_entropy(texture[there], wanted[there][:, 2])
    return loss


@torch.no_grad()
def scores(vit: Any, head: nn.Module, task: Task) -> dict[str, float]:
    """Percent of the patches with a thing that are given its kind, colour and texture."""
    right, count = np.zeros(3), 0
    vit.eval()
    for start in range(0, len(task.pixels), 100):
        pixels, wanted = task.batch(np.arange(start, min(start + 100, len(task.pixels))), change=False)
        outputs = head(task.form.states(vit, pixels)).split(SIZES, -1)
        there = wanted[..., 1] >= 0
        right += [int((each.argmax(-1) == wanted[..., at])[there].sum()) for at, each in enumerate(outputs)]
        count += int(there.sum())
    vit.train()
    return {name: float(100 * each / count) for name, each in zip(PARTS, right, strict=True)}


def optimisers(vit: nn.Module, head: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for all else, with the largest rates."""
    matrices = [each for name, each in vit.named_parameters() if each.ndim == 2 and name.startswith("blocks.")]
    known = {id(each) for each in matrices}
    others = [each for each in (*vit.parameters(), *head.parameters()) if id(each) not in known]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=RATE, weight_decay=0.05, betas=(0.9, 0.98)),
    ]


def trained(name: str, scratch: Path, out: Path, images: int, minutes: float, start: Path | None) -> dict[str, Any]:
    """Train one ViT, write it, and score what was written."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    form, chance = FORMS[name], np.random.default_rng(SEED)
    task = Task(form, *loaded(scratch / "scenes", images, form.side, "train"))
    vit: Any = form.make()
    if start is not None:
        vit.load_state_dict({key: each.float() for key, each in load_file(start / f"{name}.safetensors").items()})
    head = nn.Linear(form.dim, sum(SIZES))
    weights = [*vit.parameters(), *head.parameters()]
    learning = optimisers(vit, head)
    # A torch scheduler counts steps; here there is no number of them, but an end.
    largest = [(group, group["lr"]) for each in learning for group in each.param_groups]
    began, examples, share, losses = time.time(), 0, 0.0, list[float]()
    while (share := (time.time() - began) / (60 * minutes)) < 1:
        for group, rate in largest:
            group["lr"] = rate * min(share / WARM, (1 - share) / (1 - WARM))
        pixels, wanted = task.batch(chance.integers(len(task.pixels), size=BATCH), change=True)
        loss = loss_of(head(form.states(vit, pixels)), wanted)
        for each in learning:
            each.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for each in learning:
            each.step()
        examples += BATCH
        losses.append(loss.item())
        if examples % (1000 * BATCH) == 0:
            print(f"{name} {examples} {time.time() - began:.0f} s loss {np.mean(losses[-1000:]):.3f}", flush=True)
    rounded = {key: value.half().contiguous() for key, value in vit.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(rounded, out / f"{name}.safetensors")
    vit.load_state_dict({key: value.float() for key, value in rounded.items()})
    found = scores(vit, head, Task(form, *loaded(scratch / "scenes", images, form.side, "val")))
    size = (out / f"{name}.safetensors").stat().st_size
    return {"name": name, "patch": form.patch, "minutes": minutes, "examples": examples, "bytes": size, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for the scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--start", type=Path, help="folder of weights to go on from")
    parser.add_argument("--names", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--result", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if not (args.scratch / "scenes").is_dir():
        make_scenes(args.scratch / "scenes", args.images, SEED, BUNDLED, os.cpu_count() or 1)
    run = partial(
        trained, scratch=args.scratch, out=args.out, images=args.images, minutes=args.minutes, start=args.start
    )
    with get_context("spawn").Pool(len(args.names)) as pool:
        facts = pool.map(run, args.names)
    rows = [
        [each["name"], str(each["patch"]), f"{each['examples']:,}", f"{each['bytes'] / 1e6:.2f} MB",
         *(f"{each[part]:.1f} %" for part in PARTS)]
        for each in facts
    ]  # fmt: skip
    text = f"# Small ViTs for the example, {time.strftime('%Y-%m-%d')}\n\n{hardware()}, {args.minutes:g} minutes each. "
    text += f"{asked()}\n\n"
    text += table(["name", "patch", "examples", "file", *(f"{part}, of patches with a thing" for part in PARTS)], rows)
    write_results(args.result, "example_vits", text + "\n", facts)
    print(text)


if __name__ == "__main__":
    main()
