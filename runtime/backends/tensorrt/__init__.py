"""The TensorRT backend: runs engines on CUDA graphs, and checks their compatibility with this machine."""
