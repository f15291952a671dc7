"""Annotated images: reading and checking them, and batches for training."""
