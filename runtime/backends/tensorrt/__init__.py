"""The TensorRT backend: engines on CUDA graphs, and whether an engine fits this machine."""
