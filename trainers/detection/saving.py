"""A trained detector as the file that `extract --weights` reads: detectron2's tensor names, and its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from extractors import RegionConfig
from extractors.configs import BUTD
from extractors.faster_rcnn import BottomUpDetector
from extractors.grid_detector import GridDetector
from extractors.networks import detector_for
from extractors.weights import VOCABULARY_KEY, fill, read_checkpoint
from storage.places import open_place
from trainers.detection.vocabulary import Vocabulary

FILE = "detector.safetensors"


def save_detector(
    detector: BottomUpDetector, vocabulary: Vocabulary, out: str, name: str = FILE, half: bool = False
) -> str:
    """Write a detector into a folder, or to an address; returns where it lies.

    Args:
        half: weights of layers as float16; norms, biases and anchors stay float32.
    """
    tensors = {}
    for key, tensor in detector.state_dict().items():
        dtype = torch.float16 if half and tensor.ndim > 1 and "cell_anchors" not in key else torch.float32
        tensors[key] = tensor.detach().to("cpu", dtype).contiguous()
    place = open_place(out)
    place.make([""])
    place.write(name, safetensors.torch.save(tensors, {VOCABULARY_KEY: json.dumps(vocabulary.as_json())}))
    return f"{place.name}/{name}"


def read_detector(path: Path, model: str) -> BottomUpDetector:
    """A detector that was written, to train no more: its norms are fixed.

    Args:
        model: its name in `extract regions --model`.

    Raises:
        WeightsError: the file is of another kind.
    """
    checkpoint = read_checkpoint(path)
    kind = BottomUpDetector if model == BUTD else GridDetector
    detector = kind(detector_for(model, RegionConfig(model=model), checkpoint)).eval()
    fill(detector, checkpoint, f"detector {model}")
    return detector
