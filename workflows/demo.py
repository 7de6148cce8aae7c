"""`triptych demo`: the whole way on bundled photographs, from images to two verified stores and a page of them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from extractors import ExtractorConfig, GridConfig, RegionConfig
from pipeline.config import EngineConfig, ExtractJob
from pipeline.sources import SourceConfig
from storage import FeatureStore, GridRecord, RegionRecord, open_store, verify_store
from workflows.output import Command, emit
from workflows.progress import told
from workflows.text import size

HERE = Path(__file__).parent
PHOTOS = HERE / "photos"
BOXES_SHOWN = 10
NARROW = 4  # widths divided by this: a minute on a laptop; the weights are random anyway
VIRIDIS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float32)


@dataclass(frozen=True)
class Demo(Command):
    """Extract regions and grids from four bundled photographs, and write a page that shows them.

    triptych demo

    triptych demo --out trial
    """

    out: str = "demo-output"
    """Folder for the two stores and the page; a second demo finds its images done."""

    def run(self) -> int:
        """Run both jobs and write the page; returns the exit status, 1 where a store does not verify."""
        from pipeline.job import run_job

        jobs: list[tuple[str, ExtractorConfig]] = [
            ("regions", RegionConfig(weights="random:0", width_divisor=NARROW)),
            ("grid", GridConfig(model="r50", weights="random:0", width_divisor=NARROW)),
        ]
        sound = True
        for view, extractor in jobs:
            print(f"--- triptych extract {view}", flush=True)
            out = str(Path(self.out) / view)
            job = ExtractJob(SourceConfig(str(PHOTOS)), extractor, EngineConfig(out))
            result = told(partial(run_job, job), self.json)
            if result.status:
                return result.status
            found = verify_store(out)
            sound &= not found.problems
            state = "sound" if not found.problems else f"{len(found.problems)} problems"
            print(f"  verify      {state}: {found.records} records, {size(found.bytes)}\n")
        page = Path(self.out) / "index.html"
        page.write_text(render(Path(self.out)), encoding="utf-8")
        emit({"event": "page", "page": str(page), "sound": sound})
        print(f"open {page} in a browser: the photographs with their boxes and the grid features as a heat map")
        return 0 if sound else 1


def render(folder: Path) -> str:
    """The page over the two stores in `folder`: self-contained HTML."""
    regions, grid = open_store(folder / "regions"), open_store(folder / "grid")
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    return environment.get_template("demo.html").render(
        photos=[_photo(key, regions, grid) for key in sorted(regions.keys())],
        stores=[_store(store) for store in (regions, grid)],
        boxes_shown=BOXES_SHOWN,
    )


def _photo(key: str, regions: FeatureStore, grid: FeatureStore) -> dict[str, Any]:
    boxes, cells = regions[key], grid[key]
    assert isinstance(boxes, RegionRecord)
    assert isinstance(cells, GridRecord)
    path = PHOTOS / f"{key}.jpg"
    height, width = boxes.image_size
    return {
        "key": key,
        "width": width,
        "height": height,
        "image": _data_uri(path.read_bytes(), "jpeg"),
        "boxes": _boxes(boxes, regions.vocabulary),
        "kept": len(boxes.boxes),
        "heat": _data_uri(_png(heat_map(cells.features)), "png"),
        "cells": f"{cells.features.shape[0]} x {cells.features.shape[1]}",
    }


def _boxes(record: RegionRecord, names: dict[str, Any]) -> list[dict[str, Any]]:
    assert record.class_scores is not None and record.class_ids is not None and record.attribute_ids is not None
    best = np.argsort(-record.class_scores, kind="stable")[:BOXES_SHOWN]
    shown = []
    for rank, row in enumerate(best):
        x1, y1, x2, y2 = (float(value) for value in record.boxes[row])
        label = _name(names, "classes", int(record.class_ids[row]))
        attribute = _name(names, "attributes", int(record.attribute_ids[row]))
        shown.append(
            {
                "x": x1,
                "y": y1,
                "w": x2 - x1,
                "h": y2 - y1,
                "label": f"{attribute} {label}",
                "score": float(record.class_scores[row]),
                "hue": rank * 360 // BOXES_SHOWN,
            }
        )
    return shown


def _name(names: dict[str, Any], kind: str, index: int) -> str:
    return str(names[kind][index]) if names.get(kind) else f"{kind} {index}"


def heat_map(features: np.ndarray) -> np.ndarray:
    """Grid features (H, W, D) to a picture (H, W, 3) uint8: the norm of each cell's feature, dark to bright."""
    norms = np.linalg.norm(features.astype(np.float32), axis=-1)
    span = float(norms.max() - norms.min()) or 1.0
    place = (norms - norms.min()) / span * (len(VIRIDIS) - 1)
    low = np.minimum(place.astype(int), len(VIRIDIS) - 2)
    part = (place - low)[..., None]
    return (VIRIDIS[low] * (1 - part) + VIRIDIS[low + 1] * part).round().astype(np.uint8)


def _store(store: FeatureStore) -> dict[str, Any]:
    run, spec = store.run, store.spec
    return {
        "view": spec.view,
        "records": len(store),
        "rows": sum(entry.shard.rows for entry in store.entries if entry.shard),
        "bytes": size(sum(entry.shard.bytes for entry in store.entries if entry.shard)),
        "model": spec.model["name"],
        "weights": spec.model["weights"]["origin"],
        "divisor": spec.model["width_divisor"],
        "dim": spec.layout.dim,
        "speed": f"{run['images_per_second']:.2f} images/s" if run.get("images_this_run") else "done before",
        "spec_id": spec.id[:16],
    }


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
