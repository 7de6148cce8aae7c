"""Reading, decoding and resizing in processes of their own, beside a GPU: Python runs one thread of a process at a
time, and sixteen that decode would keep the two waiting that give a GPU its work.

A decode thread of the worker has one such process: it sends an image's reference and gets what `load_image` gives.
Pixels come through memory that both see. The process ends with its input, so with whoever started it, whatever ended
that.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise
from multiprocessing import spawn
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import torch

from extractors import ImageError
from extractors.base import Prepared
from extractors.views import Views, without_weights
from pipeline.config import EngineConfig
from pipeline.feeding import Loaded
from pipeline.sources import ImageRef, Source
from pipeline.unit import load_image
from storage import TriptychError

ROOM = 1 << 30  # bytes of the shared memory: what is not used costs nothing
TRIES = 2  # of an image whose process dies
DECODES = "TRIPTYCH_DECODES"  # in the environment of a process that decodes
GUARD = "what it does must then stand under `if __name__ == '__main__':`."
WORTH_IT = 1000  # images of a job: a process takes seconds to start

Tools = tuple[Source, Views, EngineConfig]


class ProcessLoader:
    """What a worker's decode threads call instead of decoding; each thread has its own process.

    Raises, when it is called:
        TriptychError: its processes cannot be started.
    """

    def __init__(self, source: Source, views: Views, settings: EngineConfig) -> None:
        tools = pickle.dumps((source, without_weights(views), settings))
        self._tools = pickle.dumps(_main_script() if b"__main__" in tools else {}) + tools
        self._mine = threading.local()
        self._all: list[_Process] = []

    def __call__(self, ref: ImageRef) -> Loaded:
        stood = False
        for _ in range(TRIES):
            process = self._process()
            try:
                found = process.load(ref)
            except (EOFError, OSError, pickle.UnpicklingError):
                stood = stood or process.stands
                process.close()
                del self._mine.process
                continue
            if isinstance(found, Exception):
                raise found
            return found
        if not stood:
            raise TriptychError(
                "the processes that decode images end before they begin; what they said is above. An extractor or "
                f"source of your own must be in a module, or in the script: {GUARD}"
            )
        message = f"the process that read and decoded this image alone died, {TRIES} times"
        return Loaded(ref, ImageError("crashed", message), {})

    def close(self) -> None:
        """End the processes."""
        for each in self._all:
            each.close()

    def _process(self) -> _Process:
        if not hasattr(self._mine, "process"):
            self._mine.process = _Process(self._tools)
            self._all.append(self._mine.process)
        process: _Process = self._mine.process
        return process


def _main_script() -> dict[str, Any]:
    """Where what this program's own script defines is found again, as multiprocessing tells its processes."""
    main = sys.modules["__main__"]
    if spec := getattr(main, "__spec__", None):
        return {"sys_argv": sys.argv, "init_main_from_name": spec.name}
    file = getattr(main, "__file__", None)
    return {"sys_argv": sys.argv, "init_main_from_path": str(Path(file).absolute())} if file else {}


def refuse_here() -> None:
    """For whatever begins a job.

    Raises:
        TriptychError: this process decodes for one already, and has imported the script that began it.
    """
    if DECODES in os.environ:
        raise TriptychError(f"a process that decodes images for a job began another; {GUARD}")


class _Process:
    """One process, and the memory that it shares with this one.

    stands  whether it has begun to take images
    """

    def __init__(self, tools: bytes) -> None:
        self.stands = False
        found_here = os.pathsep.join(filter(None, sys.path))  # as we were
        shared = os.memfd_create("triptych-pixels")
        try:
            os.ftruncate(shared, ROOM)
            self._memory = mmap.mmap(shared, ROOM)
            self._child = subprocess.Popen(
                [sys.executable, "-m", "pipeline.decoding", str(shared)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[shared],
                env={**os.environ, "PYTHONPATH": found_here, DECODES: "1"},
            )
        finally:
            os.close(shared)
        assert self._child.stdin and self._child.stdout
        self._to, self._from = self._child.stdin, self._child.stdout
        self._tools = tools

    def load(self, ref: ImageRef) -> Loaded | Exception:
        """What `load_image` gives, or raises.

        Raises:
            EOFError, OSError, pickle.UnpicklingError: the process died.
        """
        if not self.stands:
            self._to.write(self._tools)
            self._to.flush()
            self.stands = pickle.load(self._from)
        _send(ref, self._to)
        content, sizes = pickle.load(self._from)
        return content if isinstance(content, Exception) else _unpacked(content, sizes, self._memory)

    def close(self) -> None:
        for pipe in (self._to, self._from):
            try:
                pipe.close()
            except OSError:  # what was still to be sent to a dead process
                continue
        self._child.kill()
        self._child.wait()


def _send(content: Any, pipe: IO[bytes]) -> None:
    pipe.write(pickle.dumps(content))
    pipe.flush()


def _packed(loaded: Loaded, memory: mmap.mmap) -> tuple[bytes, list[int]]:
    """A loaded image without its pixels, which go to the shared memory, and their sizes in bytes, in order.

    Raises:
        ImageError: they are more than it holds.
    """
    sizes: list[int] = []
    begin = 0

    def put(buffer: pickle.PickleBuffer) -> None:
        nonlocal begin
        raw = buffer.raw()
        if begin + raw.nbytes > len(memory):
            raise ImageError("out_of_memory", f"resized, it has more than {len(memory) >> 20} MiB of pixels", "prepare")
        memory[begin : begin + raw.nbytes] = raw
        sizes.append(raw.nbytes)
        begin += raw.nbytes

    return pickle.dumps(_changed(loaded, lambda tensor: tensor.numpy()), protocol=5, buffer_callback=put), sizes


def _unpacked(content: bytes, sizes: list[int], memory: mmap.mmap) -> Loaded:
    view = np.frombuffer(memory, np.uint8)
    buffers = [view[begin:end].copy() for begin, end in pairwise(accumulate(sizes, initial=0))]
    loaded: Loaded = pickle.loads(content, buffers=buffers)
    return _changed(loaded, torch.from_numpy)


def _changed(loaded: Loaded, change: Callable[[Any], Any]) -> Loaded:
    """With other pixels and boxes; what several views share they share afterwards, too."""
    if isinstance(loaded.ready, ImageError):
        return loaded
    made: dict[int, Any] = {}

    def once(value: Any) -> Any:
        return None if value is None else made.setdefault(id(value), change(value))

    ready = {
        view: replace(each, pixels=once(each.pixels), boxes=once(each.boxes)) if isinstance(each, Prepared) else each
        for view, each in loaded.ready.items()
    }
    return replace(loaded, ready=ready)


def serve(shared: int) -> None:
    """Load what comes by standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    memory = mmap.mmap(shared, ROOM)
    spawn.prepare(pickle.load(sys.stdin.buffer))
    source, views, settings = pickle.load(sys.stdin.buffer)
    _send(True, answers)
    while True:
        try:
            ref: ImageRef = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: tuple[Any, list[int]] = _packed(load_image(source, views, ref, settings), memory)
        except ImageError as error:
            answer = _packed(Loaded(ref, error, {}), memory)
        except Exception as error:  # a mistake, which is for whoever asked, and not this image's
            answer = _portable(error), []
        _send(answer, answers)


def _portable(error: Exception) -> Exception:
    """With where it was raised, and as something that another process can read."""
    told = "".join(traceback.format_exception(error))
    try:
        again: Exception = pickle.loads(pickle.dumps(error))
    except Exception:
        again = RuntimeError(str(error))
    again.add_note(f"In a process that decodes:\n{told}")
    return again


if __name__ == "__main__":
    serve(int(sys.argv[1]))
