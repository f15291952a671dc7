"""Recall of proposals on annotated images."""
