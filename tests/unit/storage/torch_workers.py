"""What the ranks of the torch tests run, in processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from storage.torch_data import StoreIterable


def serve(path: Path, rank: int, world: int, port: int, results: Any) -> None:
    """Join the others over loopback, and send back the keys of this rank's share, read by two workers."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=world, rank=rank)
    try:
        dataset = StoreIterable(path, shuffle=4)
        loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
        results.put((rank, [sample["key"] for sample in loader]))
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
