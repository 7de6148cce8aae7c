"""Other projects' feature files, by the names that `triptych import` and `triptych export` take."""

from __future__ import annotations

from storage.interop.ban_hdf5 import BAN_HDF5
from storage.interop.base import Foreign
from storage.interop.butd_tsv import BUTD_TSV
from storage.interop.grid_feats import GRID_FEATS_PTH
from storage.interop.hu_hdf5 import HU_HDF5
from storage.interop.lxmert_tsv import LXMERT_TSV
from storage.interop.mcan import MCAN_NPZ
from storage.interop.milvlg import MILVLG_NPZ
from storage.interop.mmf import MMF_LMDB, MMF_NPY
from storage.interop.openvqa import OPENVQA_NPZ
from storage.interop.oscar import OSCAR_TSV
from storage.interop.uniter_lmdb import UNITER_LMDB
from storage.interop.uniter_npz import UNITER_NPZ
from storage.interop.vlbert import VLBERT_ZIP

FORMATS: dict[str, Foreign] = {
    "butd-tsv": BUTD_TSV,
    "lxmert-tsv": LXMERT_TSV,
    "vlbert-zip": VLBERT_ZIP,
    "mcan-npz": MCAN_NPZ,
    "milvlg-npz": MILVLG_NPZ,
    "openvqa-npz": OPENVQA_NPZ,
    "grid-feats-pth": GRID_FEATS_PTH,
    "uniter-npz": UNITER_NPZ,
    "uniter-lmdb": UNITER_LMDB,
    "hu-hdf5": HU_HDF5,
    "ban-hdf5": BAN_HDF5,
    "mmf-npy": MMF_NPY,
    "mmf-lmdb": MMF_LMDB,
    "oscar-tsv": OSCAR_TSV,
}
