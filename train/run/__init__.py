"""A training run: its start, its loop, its folder, and several processes that share it."""
