"""Data sets in their official files: examples to learn from, and checks of what is there."""
