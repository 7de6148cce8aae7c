"""Read a store of Arrow shards with Ray Data and pyarrow alone: paths travel, each task maps the shard it is given.

Ray sees one row an image with Arrow's types: features list<fixed_size_list<halffloat, D>>. Take batches as "pyarrow":
as "numpy" they are arrays of objects, as rows they are Python lists. Ray has no reader of Arrow files of its own.

    uv run python examples/read_with_ray_data.py STORE
"""

import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from committed import committed_shards

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # before the import; keeps the environment of `uv run`
import ray.data


def read(batch: dict) -> Iterator[pa.Table]:
    for path in batch["item"]:
        yield pa.ipc.open_file(pa.memory_map(path)).read_all()


def describe(table: pa.Table) -> Iterator[dict[str, list[str]]]:
    for row, key in enumerate(table["image_id"].to_pylist()):
        rows, grid = table["features"][row].values, (table["grid_h"][row].as_py(), table["grid_w"][row].as_py())
        shape = grid if grid[0] else (len(rows),)
        found = rows.flatten().to_numpy().reshape(*shape, rows.type.list_size)
        yield {"line": [f"{key}\t{found.shape}\t{found.dtype}\t{zlib.crc32(found.tobytes()):08x}"]}


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    shards = ray.data.from_items(committed_shards(Path(sys.argv[1]), ".arrow"))
    images = shards.map_batches(read, batch_size=1).map_batches(describe, batch_format="pyarrow")
    print(*sorted(row["line"] for row in images.iter_rows()), sep="\n")
