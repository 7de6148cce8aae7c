"""Models, tasks and the training loop will read stores from here; this version extracts and stores only."""
