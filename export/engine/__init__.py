"""From an ONNX file to a TensorRT engine; needs neither torch nor onnx."""
