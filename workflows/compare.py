"""`triptych compare`: models and visual inputs side by side, extracted, trained, scored and measured alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workflows.output import Command, emit

FIVE = ("vl_bert_vqa", "grid_vlp_vqa", "pixel_bert_vqa", "vilt_vqa", "meter_vqa")


@dataclass(frozen=True)
class Compare(Command):
    """Compare models and visual inputs: extract, train, score, measure, report.

    triptych compare --data scenes --out comparison --tiny

    triptych compare --data scenes --out comparison --recipes grid_vlp_vqa vilt_vqa --visuals store pixels --seeds 0 1 2
    """

    data: str | None = None
    """Folder with images and annotations, as `triptych scenes make` writes it."""
    out: str | None = None
    """Folder for stores, runs and the report; the same command goes on where it stopped."""
    list: bool = False
    """Show the papers' analyses that can be run by their names."""
    name: str | None = None
    """One of these, instead of --recipes and --visuals."""
    recipes: tuple[str, ...] = FIVE
    """Runs, as of `triptych train --list`."""
    visuals: tuple[str, ...] = ("store", "pixels")
    """Where images come from: store, pixels, or both, one after the other."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each line of the tables is run once with each."""
    tokenizer: str | None = None
    """As of `triptych train`. Default: the recipe's; of tiny twins the words of the data."""
    steps: int | None = None
    """End each run after so many updates. Default: the recipe's."""
    batch_size: int | None = None
    """Examples an update. Default: the recipe's."""
    device: str = "auto"
    """cpu, cuda, cuda:N or auto."""
    starts: tuple[str, ...] = ()
    """Weights to start from, RECIPE=WEIGHTS, as of `triptych train --start`. Default: what was pre-trained here, or
    random ones."""
    networks: tuple[str, ...] = ()
    """Weights of the convolutional network that sees the pixels or fills the store, RECIPE=WEIGHTS. Default: published
    ones for a store, random ones for pixels."""
    engine: Literal["local", "ray"] = "local"
    """One cell after the other in this process, or spread over a Ray cluster, a GPU or a CPU each."""
    processes: int = 1
    """Cells that run at once on this machine, a process each: for tiny twins, which leave most of a GPU idle."""
    address: str | None = None
    """Ray: the cluster's address. Default: the one at hand, or a local one."""
    config: str | None = None
    """YAML file with any of these settings, by the same names; flags win over it."""
    tiny: bool = False
    """The recipes' tiny twins: small models that begin with random weights and see by the small network of scenes that
    comes along (by random ones where --name compares networks). Minutes on a CPU."""

    def run(self) -> int:
        """Compare; returns the exit status, 1 where a cell failed."""
        if self.list:
            from workflows.comparing.named import listed

            for each in listed():
                emit(each)
                title = ": ".join(filter(None, (each["source"], each["title"])))
                print(f"{each['name']:<24} {title}\n{'':<24} {'; '.join(each['lines'])}")
            return 0
        from workflows.comparing.command import Comparison

        return Comparison(self).run()
