"""Reading and decoding on other nodes than the network's: a Ray task an image, wherever a CPU is free."""

from __future__ import annotations

import cv2
import ray
import ray.exceptions
import torch

from extractors import ImageError
from extractors.views import Views, without_weights
from pipeline.config import EngineConfig, ExtractJob
from pipeline.feeding import Loaded
from pipeline.sources import ImageRef, Source, open_source
from pipeline.unit import load_image

TRIES = 3  # of an image whose task dies
DIED = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)

Tools = tuple[Source, Views, EngineConfig]


class NodeLoader:
    """What an actor's decode threads call instead of decoding: each waits for one task, so there are never more.

    The resized pixels come back through Ray's object store.
    """

    def __init__(self, job: ExtractJob, views: Views) -> None:
        self._tools = ray.put((open_source(job.source), without_weights(views), job.engine))
        self._task = ray.remote(_load).options(num_cpus=1, max_retries=TRIES - 1, scheduling_strategy="SPREAD")

    def __call__(self, ref: ImageRef) -> Loaded:
        try:
            loaded: Loaded = ray.get(self._task.remote(self._tools, ref))
        except DIED:
            message = f"the process that read and decoded this image alone died, {TRIES} times"
            return Loaded(ref, ImageError("crashed", message), {})
        return loaded


def _load(tools: Tools, ref: ImageRef) -> Loaded:
    """Runs as a task of one CPU."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    source, views, settings = tools
    return load_image(source, views, ref, settings)
