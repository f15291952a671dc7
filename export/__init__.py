"""Export: checkpoint to ONNX, proof that they agree, and the commands that see every stage (torch, onnx)."""
