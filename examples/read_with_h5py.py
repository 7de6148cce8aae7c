"""Read a store of HDF5 shards (`triptych extract --format hdf5`) with h5py alone.

h5py sees plain contiguous data sets in each file: one line an image in image_id, width, height, grid_h, grid_w (and
whole_image); one line a box or a grid cell in features, boxes, cls_id, ...; image i owns the lines
offsets[i]:offsets[i + 1] of the latter.

    uv run python examples/read_with_h5py.py STORE
"""

import sys
import zlib
from pathlib import Path

import h5py
from committed import committed_shards


def main(store: str) -> None:
    for path in committed_shards(Path(store), ".h5"):
        with h5py.File(path, "r") as file:
            features = file["features"]  # (boxes or cells of all images, D); slicing it reads only that part
            offsets, down, across = file["offsets"][:], file["grid_h"][:], file["grid_w"][:]
            for image, key in enumerate(file["image_id"].asstr()[:]):
                found = features[offsets[image] : offsets[image + 1]]  # (N, D)
                if down[image]:
                    found = found.reshape(down[image], across[image], -1)  # (H, W, D)
                print(key, found.shape, found.dtype, f"{zlib.crc32(found.tobytes()):08x}", sep="\t")


if __name__ == "__main__":
    main(sys.argv[1])
