"""Stores as people look at them: what the page of `triptych view` asks for, and the file of `triptych report`."""
