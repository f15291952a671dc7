"""Limits of each target, checked on an ONNX file before the target's compiler reads it."""
