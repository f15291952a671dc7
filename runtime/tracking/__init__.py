"""Tracks: objects without a class that keep one number from frame to frame.

`config.py` has the settings, `run_tracker.py` the part that a run uses; nothing else here is imported without tracks.
"""
