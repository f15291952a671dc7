"""Models that a server runs, such as NVIDIA Triton: KServe's inference protocol, version 2, by HTTP or gRPC."""
