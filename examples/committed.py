"""Which shards of a store count. Needs nothing of this repository: copy it beside any of the examples."""

import json
import sys
from pathlib import Path

import pyarrow as pa


def committed_shards(store: Path, suffix: str) -> list[str]:
    """Paths of a store's committed shards that end in `suffix`, ".arrow" or ".h5"; ends the script if there are none.

    A shard counts where an entry of the manifest names it. Entries lie in manifest/, one file each, and after folding
    in a table that index.json names. A file in shards/ without an entry is what a killed job left, so do not list that
    folder. manifest/ is read first: an entry that is being folded is then met twice, but never missed.
    """
    entries = [json.loads(path.read_bytes())["content"] for path in (store / "manifest").glob("*.json")]
    shards = [entry["shard"] for entry in entries if entry["shard"]]  # null where every image of the unit failed
    if (store / "index.json").exists():
        units = json.loads((store / "index.json").read_bytes())["content"]["tables"]["units"]["file"]
        column = pa.ipc.open_file(pa.memory_map(str(store / units))).read_all()["shard"]
        shards += [json.loads(text) for text in column.to_pylist() if text]
    found = {str(store / shard["file"]) for shard in shards if shard["file"].endswith(suffix)}
    return sorted(found) or sys.exit(f"{store} has no committed {suffix} shard")
