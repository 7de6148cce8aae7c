"""Write any store as webdataset shards with this package, and read them with webdataset alone.

webdataset sees, for each image, features.npy ((N, D), or (H, W, D) of a grid), boxes.npy, class_ids.npy, ... and a json
with the key as it is and image_size. Its own `__key__` has dots, %, and other than ASCII characters as %XX.

    uv run python examples/read_with_webdataset.py STORE
"""

import sys
import tempfile
import zlib

import webdataset

from storage import open_store


def main(store: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = open_store(store).to_webdataset(folder)
        for sample in webdataset.WebDataset([str(path) for path in paths], shardshuffle=False).decode():
            found = sample["features.npy"]
            print(sample["json"]["key"], found.shape, found.dtype, f"{zlib.crc32(found.tobytes()):08x}", sep="\t")


if __name__ == "__main__":
    main(sys.argv[1])
