"""Builds a TensorRT engine from an ONNX file; needs neither torch nor onnx."""
