"""What held a job up, in a sentence, with what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cores import usable_cores

if TYPE_CHECKING:
    from pipeline.job import JobResult

SHORTEST = 10.0  # seconds: before that, most of the waiting is for the first images
WAITS = 0.1  # of the network's time; less is what batches cost each other


def bottleneck(result: JobResult) -> str | None:
    """What held a job up; None of one that was too short to tell."""
    if result.seconds < SHORTEST or not result.report.images:
        return None
    engine, on_gpu = result.start.job.engine, result.start.device != "cpu"
    return sentence(result.report.seconds, engine.decode_threads(on_gpu), on_gpu)


def sentence(seconds: dict[str, float], decoders: int, on_gpu: bool) -> str:
    """`model 81 %, waiting for decode 19 %: raise --decode-workers ...`

    The network's threads work or wait; they wait for what keeps its own threads busiest: reading and decoding share
    theirs, and one thread writes.

    Args:
        seconds: by stage, summed over threads, as of `UnitReport`.
        decoders: threads that read and decode, of a worker.
    """
    spent = {stage: seconds.get(stage, 0.0) for stage in ("read", "decode", "write", "model", "idle")}
    all_of_it = spent["model"] + spent["idle"] or 1.0
    model, idle = (round(100 * spent[each] / all_of_it) for each in ("model", "idle"))
    if spent["idle"] < WAITS * all_of_it:
        return f"model {model} %: {_faster_model(on_gpu)}"
    if spent["write"] > (spent["read"] + spent["decode"]) / decoders:
        culprit, advice = "write", "a faster disk for --out, or --store-dtype uint8, which halves what is written"
    elif spent["read"] > spent["decode"]:
        culprit, advice = "read", "raise --decode-workers, which read as well, or bring the images nearer"
    else:
        culprit, advice = "decode", _faster_decode(decoders)
    return f"model {model} %, waiting for {culprit} {idle} %: {advice}"


def _faster_model(on_gpu: bool) -> str:
    if on_gpu:
        return "the GPU is busy; --dtype bfloat16 is faster, or take more GPUs with --engine ray"
    return "the network takes all there is; take a GPU, or more machines with --engine ray"


def _faster_decode(decoders: int) -> str:
    if decoders < usable_cores():
        return f"raise --decode-workers above {decoders}"
    return "all cores decode; take those of more machines with --engine ray --decode-on nodes"
