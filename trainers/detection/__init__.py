"""Training the detectors of `extractors/`: boxes read, targets, losses, scores, and files that extraction takes."""
