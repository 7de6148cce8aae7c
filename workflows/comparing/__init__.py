"""What `triptych compare` runs: which cells there are, what each needs, and how one is run."""
