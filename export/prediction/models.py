"""Opens a checkpoint, an ONNX file or an engine as one thing: frames of any sizes in, proposals out.

PyTorch is imported for a checkpoint only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerpn.errors import ConfigError
from edgerpn.export.prediction.config import PredictConfig
from edgerpn.images.header import Exif
from edgerpn.machine import available_cores
from edgerpn.models import is_checkpoint
from edgerpn.proposals import Proposals
from edgerpn.runtime.model import load
from edgerpn.runtime.run.runner import GPU_BATCH, natural_batch

Image = npt.NDArray[np.uint8]

_MAX_WORKERS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """A loaded model; threads may share it."""

    name: str
    """Name of its file."""
    ran_by: str
    """Library, version and device."""
    batch: int
    """Frames in one call that suit it."""
    num_workers: int
    """Concurrent calls that give the best throughput."""
    exif: Exif
    """Whether image files are turned by their EXIF orientation."""
    class_names: tuple[str, ...] = ()
    """Names of its classes; empty: it does not have classes."""
    run: Callable[[Sequence[Image]], list[Proposals]]
    """Runs frames (H, W, 3) uint8 BGR of any sizes together."""
    closing: AbstractContextManager[object]
    """Frees the model at its end."""


def open_predictor(
    file: Path, config: PredictConfig, *, allow_host_code: bool = False, verify: bool = True
) -> Predictor:
    """Loads a model by the suffix of its file.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ConfigError: The checkpoint's network cannot work at the size of the settings.
        EngineLoadError: The exported model cannot be loaded.
        ManifestError: The exported model's manifest is missing or does not fit.
    """
    return _checkpoint(file, config) if is_checkpoint(file) else _exported(file, config, allow_host_code, verify)


def _exported(file: Path, config: PredictConfig, allow_host_code: bool, verify: bool) -> Predictor:
    # Two frames are in the model at once: two callers and threads - 1 helpers then fill the cores.
    threads = config.threads or max(1, available_cores() - 1)
    model = load(
        file, providers=config.providers or None, threads=threads, allow_host_code=allow_host_code, verify=verify
    )
    return Predictor(
        name=file.name,
        ran_by=model.backend.name,
        batch=config.batch or natural_batch(model),
        num_workers=max(1, model.backend.frames_in_flight),
        exif=model.manifest.input.exif_reading,
        class_names=model.manifest.class_names,
        run=model.batch_fitted,
        closing=model,
    )


def _checkpoint(file: Path, config: PredictConfig) -> Predictor:
    import torch

    from edgerpn.train.checkpoint import load_model, versions
    from edgerpn.train.evaluation import make_detector
    from edgerpn.train.network.detector import detect_batch

    if config.providers or config.threads:
        raise ConfigError([f"{file}: providers and threads are for ONNX files; PyTorch runs a checkpoint"])
    model, content = load_model(file)
    detector = make_detector(model, content, num_proposals=config.num_proposals, size_hw=config.size_hw)
    device = detector.get_buffer("anchors_0").device
    is_gpu = device.type == "cuda"
    # On a CPU an image for each core: the threads of one network wait for each other, above all on a busy machine.
    num_workers = 2 if is_gpu else min(_MAX_WORKERS, available_cores())
    closing = ExitStack()
    if not is_gpu:
        closing.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(max(1, available_cores() // num_workers))
    return Predictor(
        name=file.name,
        ran_by=f"PyTorch {versions()['torch']}, {device}",
        batch=config.batch or (GPU_BATCH if is_gpu else 1),
        num_workers=num_workers,
        exif=content.settings.data.choice.images.reading,
        class_names=content.settings.model.classes,
        run=lambda frames: detect_batch(detector, frames),
        closing=closing,
    )
