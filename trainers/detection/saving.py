"""A trained detector as the file that `extract --weights` reads: detectron2's tensor names, and its vocabulary."""

from __future__ import annotations

import json

import safetensors.torch
import torch

from extractors.faster_rcnn import BottomUpDetector
from extractors.weights import VOCABULARY_KEY
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
