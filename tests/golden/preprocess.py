"""Checks the folder of official image transforms: ViLT's, METER's and VL-BERT's, with VL-BERT's boxes and outline."""

from __future__ import annotations

import numpy as np
import torch

from extractors.networks import BUTD_MEAN
from extractors.trunk import UNIT_STD
from tests.golden.compare import EXACT, MODELS, Folder, Report
from trainers.images import fast_rcnn_regions, meter_square, outline, square_pixels, vilt_pixels
from trainers.models.vilt import HALF


def check(folder: Folder, report: Report) -> None:
    """Compare everything in the folder."""
    for index in folder.indices("image"):
        check_image(folder, report, index)
    polygons = [folder.inputs[name].numpy() for name in folder.inputs if name.startswith("mask_polygon")]
    found = outline(polygons, folder.inputs["mask_box"].tolist())
    report.compare("vl_bert_instance_mask_14", found, folder.outputs["vl_bert_instance_mask_14"], EXACT)


def check_image(folder: Folder, report: Report, index: str) -> None:
    """One image through all transforms."""
    image, boxes, outputs = folder.image(f"image_{index}"), folder.inputs[f"boxes_{index}"].numpy(), folder.outputs
    vilt = vilt_pixels([image], folder.setting("vilt_size")).normalised((HALF,) * 3, (HALF,) * 3)
    report.compare(f"vilt_{index}", vilt.images[0], outputs[f"vilt_{index}"], MODELS)
    for name, imagenet in (("clip", False), ("imagenet", True)):
        square = square_pixels([image], meter_square(folder.setting("meter_size"), imagenet))
        ready = square.normalised((0.0,) * 3, (1.0,) * 3)  # by its own colours
        report.compare(f"meter_{name}_{index}", ready.images[0], outputs[f"meter_{name}_{index}"], MODELS)
    regions = fast_rcnn_regions([image], [boxes], *folder.setting("vl_bert_scales"))
    assert regions.pixels is not None
    ready = regions.pixels.normalised(BUTD_MEAN, UNIT_STD, bgr=True)
    report.compare(f"vl_bert_image_{index}", ready.images[0], outputs[f"vl_bert_image_{index}"], MODELS)
    report.compare(f"vl_bert_boxes_{index}", regions.boxes[0], outputs[f"vl_bert_boxes_{index}"], MODELS)
    size = regions.image_sizes[0].flip(0)
    ratios = size / torch.from_numpy(np.float32(image.shape[1::-1]))
    report.compare(f"vl_bert_im_info_{index}", torch.cat([size, ratios]), outputs[f"vl_bert_im_info_{index}"], MODELS)
