"""Settings of a bulk run."""

from __future__ import annotations

from dataclasses import dataclass

from edgerpn.errors import check_setting


@dataclass(frozen=True, kw_only=True, slots=True)
class BulkConfig:
    """Choice of the proposals, form of the parts, and resources of the workers."""

    min_score: float = 0.0
    """Proposals scored below this are left out, 0 to 1."""
    max_per_image: int = 0
    """Maximum number of proposals of a picture, the best ones; 0: all."""
    part_rows: int = 512
    """Pictures of a part, 1 to 100,000: the unit that a worker takes, and does again after a failure. A video, and a
    row group of a Parquet file of bytes, is never divided."""
    bytes_column: str = "bytes"
    """Column of a Parquet file that holds encoded pictures; `image.bytes` is the field of a structure."""
    path_column: str = "path"
    """Column of a Parquet file that holds paths; beside bytes it holds their names."""
    workers: int = 0
    """Maximum number of workers; 0: as many as the CPUs (or the GPUs) of the cluster suffice for."""
    threads: int = 1
    """CPUs of a worker: threads that read and decode pictures, and threads of one inference of an ONNX file."""
    gpus: float = 0.0
    """GPUs of a worker, or the share of one; 0: one for an engine, none for an ONNX file."""
    batch: int = 0
    """Pictures in one inference; 0: the batch that the model is made for, 1 on a CPU."""
    providers: tuple[str, ...] = ()
    """ONNX Runtime execution providers (tensorrt, cuda, cpu) in order of preference; empty: CUDA if there, else CPU."""
    max_attempts: int = 5
    """Workers that may die in one part before the run gives up, 1 to 100."""

    def __post_init__(self) -> None:
        check_setting(0 <= self.min_score <= 1, "min_score", "0 to 1", self.min_score)
        check_setting(self.max_per_image >= 0, "max_per_image", "0 or more", self.max_per_image)
        check_setting(1 <= self.part_rows <= 100_000, "part_rows", "1 to 100000", self.part_rows)
        check_setting(0 <= self.workers <= 100_000, "workers", "0 to 100000", self.workers)
        check_setting(1 <= self.threads <= 1024, "threads", "1 to 1024", self.threads)
        check_setting(0 <= self.gpus <= 64, "gpus", "0 to 64", self.gpus)
        check_setting(0 <= self.batch <= 256, "batch", "0 to 256", self.batch)
        check_setting(1 <= self.max_attempts <= 100, "max_attempts", "1 to 100", self.max_attempts)
