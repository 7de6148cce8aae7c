"""Records on disk: what an image's features are, the shards that hold them, and the manifest that makes them exist."""

from storage.errors import SpecMismatchError, StoreError, TriptychError
from storage.manifest import ErrorRow
from storage.records import GridRecord, PackedBatch, PaddedBatch, PatchRecord, PixelRecord, Record, RegionRecord
from storage.spec import FeatureLayout, Spec
from storage.store import FeatureStore, open_store
from storage.verify import verify_store
from storage.writer import StoreWriter

__all__ = [
    "ErrorRow",
    "FeatureLayout",
    "FeatureStore",
    "GridRecord",
    "PackedBatch",
    "PaddedBatch",
    "PatchRecord",
    "PixelRecord",
    "Record",
    "RegionRecord",
    "Spec",
    "SpecMismatchError",
    "StoreError",
    "StoreWriter",
    "TriptychError",
    "open_store",
    "verify_store",
]
