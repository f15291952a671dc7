"""The check of a data set without training: boxes, copies of images, the model's opinion, and their report."""
