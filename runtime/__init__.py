"""The device runtime: frames in, proposals out (NumPy, OpenCV and an inference backend; never torch or onnx)."""
