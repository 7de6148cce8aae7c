"""The models, one file each, on the blocks of `layers.py`; all of them take the batch of `trainers/batch.py`."""
