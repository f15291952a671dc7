"""From a checkpoint to an ONNX file that gives the same proposals."""
