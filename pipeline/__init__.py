"""From image sources to committed shards, on one machine or a Ray cluster."""
