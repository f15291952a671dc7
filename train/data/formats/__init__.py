"""Formats of data sets: each module finds its layouts in a folder and converts them to COCO's structure."""
