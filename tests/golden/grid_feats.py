"""Checks folders of facebookresearch/grid-feats-vqa: resize, every stage of the network, and the saved grid.

Shapes in this file: C channels, h x w pixels or cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from extractors import load_extractor
from extractors.base import Prepared
from extractors.grid import GridExtractor
from tests.golden.capture import captured, check_repeatable, extract_last
from tests.golden.compare import EXACT, FEATURES, CannotCheckError, Folder, Report

MODELS = {
    "configs/R-50-grid.yaml": "r50",
    "configs/X-101-grid.yaml": "x101",
    "configs/X-152-grid.yaml": "x152",
    "configs/X-152-challenge.yaml": "x152pp",
}
STAGES = {"stem": "stem", "res2": "res2", "res3": "res3", "res4": "res4", "res5": "grid"}  # module -> tensor


def check(folder: Folder, report: Report) -> None:
    """Compare everything in a folder of this project."""
    extractor = load(folder)
    report.compare("config pixel_mean", extractor.mean.flatten(), _channels(folder, "pixel_mean"), EXACT)
    report.compare("config pixel_std", extractor.std.flatten(), _channels(folder, "pixel_std"), EXACT)
    for index in folder.indices("image_rgb"):
        prepared = extractor.prepare(index, folder.image(f"image_rgb_{index}"))
        check_preprocessing(folder, report, prepared)
        check_stages(folder, report, extractor, index)
        check_end_to_end(folder, report, extractor, prepared)
        check_repeatable(report, extractor, prepared)
    for batch in folder.config.get("batches", []):
        check_batch(folder, report, extractor, batch)


def load(folder: Folder) -> GridExtractor:
    """The production extractor with the folder's weights and test sizes."""
    config = folder.setting("upstream", "config")
    if config not in MODELS:
        raise CannotCheckError(f"{folder.path} is of {config}; understood are {', '.join(MODELS)}.")
    extractor = load_extractor(
        "grid",
        model=MODELS[config],
        weights=folder.weights,
        shorter=folder.setting("input", "min_size_test"),
        longer=folder.setting("input", "max_size_test"),
        store_dtype="float32",
        device="cpu",
    )
    assert isinstance(extractor, GridExtractor)
    return extractor


def check_preprocessing(folder: Folder, report: Report, prepared: Prepared) -> None:
    """The resized bytes, equal."""
    name = f"resized_bgr_{prepared.key}"
    report.compare(name, prepared.pixels, folder.inputs[name], EXACT)


def check_stages(folder: Folder, report: Report, extractor: GridExtractor, index: str) -> None:
    """Every stage, fed with the stored output of the stage before where there is one."""
    x = normalised(extractor, folder.inputs[f"resized_bgr_{index}"])
    if f"network_input_{index}" in folder.inputs:
        report.compare(f"network_input_{index}", x, folder.inputs[f"network_input_{index}"], EXACT)
    for module, stage in extractor.network.named_children():
        x = stage(x)
        name = f"{STAGES[module]}_{index}"
        if name in folder.outputs:
            report.compare(name, x, folder.outputs[name], FEATURES)
            x = folder.outputs[name]


def check_end_to_end(folder: Folder, report: Report, extractor: GridExtractor, prepared: Prepared) -> None:
    """The raw image through the production extractor: its record, and what its network met on the way."""
    modules = {"network_input": extractor.network, **dict(extractor.network.named_children())}
    with captured(modules) as seen:
        record = extract_last(extractor, prepared)
    key = prepared.key
    if f"network_input_{key}" in folder.inputs:
        wanted = folder.inputs[f"network_input_{key}"]
        report.compare(f"end_to_end network_input_{key}", seen["network_input"].given, wanted, EXACT)
    for module in ("stem", "res2", "res3", "res4"):
        if f"{module}_{key}" in folder.outputs:
            wanted = folder.outputs[f"{module}_{key}"]
            report.compare(f"end_to_end {module}_{key}", seen[module].gave, wanted, FEATURES)
    grid = torch.from_numpy(record.features).permute(2, 0, 1)[None]
    report.compare(f"end_to_end grid_{key}", grid, folder.outputs[f"grid_{key}"], FEATURES)


def check_batch(folder: Folder, report: Report, extractor: GridExtractor, batch: dict[str, Any]) -> None:
    """The official padded batch, which our extractor never makes: zeros after normalisation, to a common size."""
    images = [normalised(extractor, folder.inputs[f"resized_bgr_{index}"]) for index in batch["images"]]
    name = f"batch_{batch['index']}_grid"
    report.compare(name, extractor.network(zero_padded(images)), folder.outputs[name], FEATURES)


def normalised(extractor: GridExtractor, pixels: Tensor) -> Tensor:
    """uint8 (3, h, w) to float32 (1, 3, h, w)."""
    return ((pixels.float() - extractor.mean) / extractor.std)[None]


def zero_padded(images: list[Tensor]) -> Tensor:
    """Images (1, 3, h, w) of any sizes as one batch, zeros to the right and below."""
    height, width = (max(image.shape[axis] for image in images) for axis in (2, 3))
    padded = [F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2])) for image in images]
    return torch.cat(padded)


def _channels(folder: Folder, name: str) -> Tensor:
    return torch.tensor(folder.setting("input", name), dtype=torch.float32)
