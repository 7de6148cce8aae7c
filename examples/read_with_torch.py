"""Read any store with torch: a data set by index, a stream, and packed batches; each prints every image once.

A DataLoader sees dictionaries of tensors: features (N, D), or (H, W, D) of a grid, boxes (N, 4), class_ids (N,), ...,
key and image_size. A BatchLoader gives images end to end: values (sum N, D), offsets (B + 1,), boxes (sum N, 4).

    uv run python examples/read_with_torch.py STORE
"""

import sys
import zlib

import torch
from torch.utils.data import DataLoader

from storage import open_store
from storage.reading import BatchLoader
from storage.torch_data import StoreDataset, StoreIterable, as_tensor


def show(way: str, key: str, found: torch.Tensor) -> None:
    kind, data = str(found.dtype).removeprefix("torch."), found.flatten().view(torch.uint8).numpy().tobytes()
    print(way, key, tuple(found.shape), kind, f"{zlib.crc32(data):08x}", sep="\t")


def main(store: str) -> None:
    for batch in DataLoader(StoreDataset(store), batch_size=2, shuffle=True, num_workers=2, collate_fn=list):
        for item in batch:
            show("by index", item["key"], item["features"])
    for item in DataLoader(StoreIterable(store, shuffle=0), batch_size=None, num_workers=2):
        show("stream", item["key"], item["features"])
    for packed in BatchLoader(open_store(store), batch_size=2, shuffle=0):  # threads, no processes: much the fastest
        for image, key in enumerate(packed.keys):
            show("packed", key, as_tensor(packed.values[packed.offsets[image] : packed.offsets[image + 1]]))


if __name__ == "__main__":
    main(sys.argv[1])
