"""Read a store of Arrow shards with Hugging Face datasets alone.

datasets sees one row an image: image_id Value("string"), features List(List(Value("float16"), length=D)), boxes
List(List(Value("float32"), length=4)). Its "numpy" and "torch" formats turn float16 into float32; "arrow" keeps it.

    uv run python examples/read_with_datasets.py STORE
"""

import os
import sys
import tempfile
import zlib
from pathlib import Path

from committed import committed_shards

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")  # read when datasets is imported

import datasets


def main(store: str) -> None:
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:  # every shard is copied there; not so with streaming=True
        shards = committed_shards(Path(store), ".arrow")
        data = datasets.load_dataset("arrow", data_files=shards, split="train", cache_dir=cache)
        print(data.features, file=sys.stderr)
        for table in data.with_format("arrow"):  # one row each
            rows, grid = table["features"][0].values, (table["grid_h"][0].as_py(), table["grid_w"][0].as_py())
            shape = grid if grid[0] else (len(rows),)
            found = rows.flatten().to_numpy().reshape(*shape, rows.type.list_size)
            print(table["image_id"][0], found.shape, found.dtype, f"{zlib.crc32(found.tobytes()):08x}", sep="\t")


if __name__ == "__main__":
    main(sys.argv[1])
