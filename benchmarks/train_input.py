"""Does training wait for its features? From our store, and from LMDB and npz files as older projects read them.

    uv run python -m benchmarks.train_input --work /tmp/train-input --out benchmarks/results

Protocol. Two models with full-size batches of the same examples from every layout: VL-BERT base with 36 to 100 boxes an
image, Grid-VLP base with grids of 19 x 32 cells; 2048 float16 values a row, texts of 20 tokens. A turn is a number of
updates; all ways take turns, the first turn is dropped, medians are given.

ways    resident: one batch, loaded before: what an update takes when nothing is loaded.
        store: `FeatureStore.batch` in the training loop's threads. lmdb (pickled float16), uniter (UNITER's LMDB, lz4
        and msgpack) and npz (a file an image): record by record, padded, in the same number of threads; and in as many
        worker processes of a `DataLoader`, as those projects do it.
update  on a GPU: forward, backward and AdamW of the full-size model under bfloat16. Elsewhere the time that a GPU would
        take (--step-ms), spent asleep, so that loading has the processor to itself as it would have.
wait    share of the time in which the loop stood waiting for the next batch.
alone   the time of a batch where nothing is done with it: below an update's, loading keeps up.
longer  how much longer an update took than a resident one's: all that loading costs, copies to the GPU included.

Up to four batches wait when a turn begins, which hides as many of a slow loader's waits: turns are ten times as long.
Files are in the page cache: a store larger than memory is read as fast as its disk allows (`store.py`, cold).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import feature_sets as sets
from benchmarks.machine import asked, hardware, table, write_results
from storage import Record, RegionRecord, open_store
from trainers.batch import Batch, Cells, Regions, Text, VisualInput, from_packed
from trainers.device import Mover
from trainers.loading import load
from trainers.models.grid_vlp import GridVLP, GridVLPConfig
from trainers.models.vl_bert import VLBert, VLBertConfig
from trainers.order import Cut, Order
from trainers.tasks.base import Batches

IMAGES = {"vl-bert": 4000, "grid-vlp": 400}  # about 1.1 and 1 GB
STEP_MS = {"vl-bert": 60.0, "grid-vlp": 250.0}  # of 64 examples: about 6 TFLOP and 30, at 100 to 120 TFLOP/s
WORDS, VOCABULARY = 20, 30522
GRID = (19, 32)
Read = Callable[[list[str]], VisualInput]


def boxes(count: int, rows: np.ndarray) -> Iterator[Record]:
    """Images with 36 to 100 boxes."""
    rng = np.random.default_rng(5)
    for number in range(count):
        kept = int(rng.integers(36, 101))
        start = int(rng.integers(0, sets.POOL - kept))
        corners = (rng.random((kept, 4)) * 320).astype(np.float32)
        corners[:, 2:] += corners[:, :2] + 1
        features, ids, scores = rows[start : start + kept], np.zeros(kept, np.int32), np.zeros(kept, np.float32)
        yield RegionRecord(f"{number:012d}", (480, 640), corners, features, features[0], ids, scores, ids, scores)


def build(work: Path, model: str) -> None:
    """Write what is missing of all layouts."""
    folder = work / model
    if (folder / "done").exists():
        return
    rows, count = sets.pool(), IMAGES[model]
    kind = "grid" if model == "grid-vlp" else "var"
    made = list(sets.records("grid", count, rows) if kind == "grid" else boxes(count, rows))
    sets.write_store(folder / "store", kind, "arrow", made)
    for value in sets.ENCODE:
        sets.write_lmdb(folder / f"{value}.lmdb", made, value)
    sets.write_npz(folder / "npz", made)
    (folder / "done").touch()


def from_store(folder: Path) -> Read:
    store = open_store(folder / "store")
    return lambda keys: from_packed(store.batch(keys))


def one_by_one(read: Callable[[str], dict[str, np.ndarray]]) -> Read:
    """Records one after the other, padded with zeros to the longest, as the older projects do."""

    def batch(keys: list[str]) -> VisualInput:
        found = [read(key) for key in keys]
        counts = [len(each["features"]) for each in found]
        values = np.zeros((len(keys), max(counts), sets.WIDTH), np.float16)
        corners = np.zeros((len(keys), max(counts), 4), np.float32)
        for image, (each, count) in enumerate(zip(found, counts, strict=True)):
            values[image, :count] = each["features"]
            corners[image, : len(each["boxes"])] = each["boxes"]
        mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        if not len(found[0]["boxes"]):
            return Cells(torch.from_numpy(values), mask, (GRID,) * len(keys))
        sizes = torch.tensor([(480.0, 640.0)]).expand(len(keys), 2)
        return Regions(torch.from_numpy(corners), sizes, mask, torch.from_numpy(values))

    return batch


def reader(folder: Path, layout: str) -> Read:
    """What reads the visual inputs of some keys."""
    if layout == "store":
        return from_store(folder)
    if layout == "npz":
        return one_by_one(sets.Npz(folder / "npz"))
    value = {"lmdb": "pickle", "uniter": "uniter"}[layout]
    return one_by_one(sets.Lmdb(folder / f"{value}.lmdb", value))


class Examples(Dataset[Batch]):
    """A task as the training loop loads it, and a data set as a `DataLoader` does: the same batches.

    Opened by whoever reads first, as LMDB does not survive a fork.
    """

    def __init__(self, folder: Path, layout: str, model: nn.Module, cuts: Sequence[Cut]) -> None:
        self.folder, self.layout, self.cuts = folder, layout, cuts
        self.lay_out: Callable[[Batch], Any] = model.layout  # type: ignore[assignment]
        self._read: Read | None = None

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, index: int) -> Batch:
        return self.collate(self.cuts[index].numbers, 0)["batch"]

    def open(self) -> None:
        """Open the layout in this process, if it is not."""
        self._read = self._read or reader(self.folder, self.layout)

    def collate(self, numbers: Sequence[int], epoch: int) -> dict[str, Batch]:
        self.open()
        assert self._read is not None
        words = np.random.default_rng(numbers[0]).integers(1000, VOCABULARY - 1, (len(numbers), WORDS))
        batch = Batch(Text(torch.from_numpy(words)), self._read([f"{number:012d}" for number in numbers]))
        return {"batch": Batch(batch.text, batch.visual, layout=self.lay_out(batch))}

    def counts(self, batches: Batches) -> dict[str, float]:
        return {"loss": 1.0}


def loaded(examples: Examples, way: str, workers: int, pin: bool) -> Generator[Batches, None, None]:
    """Batches by the loop's threads, or by a `DataLoader`'s processes."""
    if way == "threads":
        examples.open()
        with closing(load(examples, ([cut] for cut in examples.cuts), workers, pin)) as coming:  # type: ignore[arg-type]
            for [part] in coming:
                yield part.batches
        return
    for batch in DataLoader(examples, batch_size=None, num_workers=workers, pin_memory=pin, prefetch_factor=2):
        yield {"batch": batch}


def update(model: nn.Module, device: torch.device, step_ms: float) -> Callable[[Batches], None]:
    """One update of the weights on a GPU; elsewhere the time of one."""
    if device.type != "cuda":
        return lambda batches: time.sleep(step_ms / 1000)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)

    def run(batches: Batches) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss: Tensor = model.pooled(model(batches["batch"])).float().square().mean()  # type: ignore[operator]
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return run


def turn(
    coming: Iterator[Batches], run: Callable[[Batches], None], device: torch.device, steps: int
) -> dict[str, float]:
    """Seconds an update, and the share of them spent waiting, of the updates after the first two."""
    move = Mover(device)
    waits, began = [], 0.0
    for step in range(steps + 2):
        if step == 2:
            _drain(device)
            began, waits = time.perf_counter(), []
        asked = time.perf_counter()
        batches = next(coming)
        waits.append(time.perf_counter() - asked)
        run(move(batches))
    _drain(device)
    seconds = time.perf_counter() - began
    return {"ms": 1000 * seconds / steps, "wait": sum(waits) / seconds}


def measure(model_name: str, args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """All ways in turns."""
    folder, steps = args.work / model_name, args.steps
    build(args.work, model_name)
    torch.manual_seed(0)
    made = VLBert(VLBertConfig(heads=())) if model_name == "vl-bert" else GridVLP(GridVLPConfig(heads=()))
    model = made.to(device).train()
    run = update(model, device, args.step_ms or STEP_MS[model_name])
    order = Order(IMAGES[model_name], args.batch, 0)
    cuts = [cut for step in range(steps + 2) for cut in [Cut(0, tuple(n for _, n in order.batch(step)))]]
    ways = [("store", "threads")] + [(each, how) for each in args.layouts for how in ("threads", "processes")]
    found: dict[tuple[str, str], list[dict[str, float]]] = {("resident", ""): []} | {way: [] for way in ways}
    pin = device.type == "cuda"
    for _ in range(args.turns + 1):
        for (layout, how), turns in found.items():
            if layout == "resident":
                batch = Mover(device)(Examples(folder, "store", model, cuts).collate(cuts[0].numbers, 0))
                turns.append(turn(repeat(batch), run, device, steps) | {"alone": 0.0})
                continue
            both = []
            for work in (run, lambda batches: None):
                with closing(loaded(Examples(folder, layout, model, cuts), how, args.workers, pin)) as coming:
                    both.append(turn(coming, work, device, steps))
            turns.append(both[0] | {"alone": both[1]["ms"]})
    resident = _median(found["resident", ""], "ms")
    return [
        {
            "model": model_name,
            "layout": layout,
            "loaded by": how,
            "ms": _median(turns[1:], "ms"),
            "wait": _median(turns[1:], "wait"),
            "alone": _median(turns[1:], "alone"),
            "longer": statistics.median(
                mine["ms"] / base["ms"] - 1 for mine, base in zip(turns[1:], found["resident", ""][1:], strict=True)
            ),
            "gb_s_needed": _batch_bytes(folder, cuts[0]) / 1e6 / resident,
        }
        for (layout, how), turns in found.items()
    ]


def _batch_bytes(folder: Path, cut: Cut) -> int:
    return int(open_store(folder / "store").batch([f"{number:012d}" for number in cut.numbers]).values.nbytes)


def _median(turns: list[dict[str, float]], name: str) -> float:
    return statistics.median(each[name] for each in turns)


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(rows: list[dict[str, Any]], args: argparse.Namespace, device: torch.device) -> str:
    """The table as Markdown."""
    what = "measured updates" if device.type == "cuda" else "updates simulated by sleeping"
    cells = [
        [
            row["model"],
            row["layout"],
            row["loaded by"],
            f"{row['ms']:.1f}",
            f"{row['wait']:.1%}",
            f"{row['longer']:.1%}",
            f"{row['alone']:.1f}" if row["alone"] else "",
        ]
        for row in rows
    ]
    needed = {row["model"]: f"{row['gb_s_needed']:.2f} GB/s" for row in rows}
    head = [
        f"# Waiting for features in training, {time.strftime('%Y-%m-%d')}",
        f"{hardware()}, {torch.cuda.get_device_name() if device.type == 'cuda' else 'no GPU'}; {what}. Batches of "
        f"{args.batch}, {args.workers} threads or processes, {args.steps} updates a turn, medians of {args.turns}.",
        f"{asked()} Features that the updates "
        "ask for: " + ", ".join(f"{name} {rate}" for name, rate in needed.items()) + ".",
        table(["model", "layout", "loaded by", "ms an update", "waiting", "longer than resident", "alone, ms"], cells),
    ]
    return "\n\n".join(head) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("train-input"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--models", nargs="+", default=list(IMAGES), choices=list(IMAGES))
    parser.add_argument("--layouts", nargs="*", default=["lmdb", "uniter", "npz"], choices=["lmdb", "uniter", "npz"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--step-ms", type=float, help="simulated updates without a GPU; default: by the model")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = list(chain.from_iterable(measure(name, args, device) for name in args.models))
    text = report(rows, args, device)
    print(text)
    print(write_results(args.out, "train_input", text, rows))


if __name__ == "__main__":
    main()
