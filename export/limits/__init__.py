"""Limits of each target, checked on an ONNX file before its compiler reads it."""
