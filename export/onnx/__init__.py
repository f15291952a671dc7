"""From a checkpoint to an ONNX file with the same proposals."""
