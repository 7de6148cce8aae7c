"""What is trained on the features: models, and the batches that they receive."""
