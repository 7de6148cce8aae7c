"""What is learnt: one file a task, pre-training objectives among them."""
