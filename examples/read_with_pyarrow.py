"""Read a store of Arrow shards with pyarrow alone: questions to all of them, and one image's features without a copy.

pyarrow sees one row an image. `features` is list<fixed_size_list<halffloat, D>>, one inner list a box or a grid cell;
`boxes` is list<fixed_size_list<float, 4>>; image_id, width, height, grid_h and grid_w are plain columns.

    uv run python examples/read_with_pyarrow.py STORE
"""

import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from committed import committed_shards


def features(table: pa.Table, row: int) -> np.ndarray:
    """(N, D) for regions, (H, W, D) for a grid: a read-only view of the mapped file."""
    rows, grid = table["features"][row].values, (table["grid_h"][row].as_py(), table["grid_w"][row].as_py())
    shape = grid if grid[0] else (len(rows),)
    return rows.flatten().to_numpy().reshape(*shape, rows.type.list_size)


def main(store: str) -> None:
    shards = committed_shards(Path(store), ".arrow")
    sizes = pyarrow.dataset.dataset(shards, format="ipc").to_table(columns=["image_id", "width", "height"])
    print(f"{len(sizes)} images, the widest of {pc.max(sizes['width'])} pixels", file=sys.stderr)
    for path in shards:
        table = pa.ipc.open_file(pa.memory_map(path)).read_all()  # maps; nothing is read yet
        for row, key in enumerate(table["image_id"].to_pylist()):
            found = features(table, row)
            print(key, found.shape, found.dtype, f"{zlib.crc32(found.tobytes()):08x}", sep="\t")


if __name__ == "__main__":
    main(sys.argv[1])
