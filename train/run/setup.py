"""The beginning of a run: data, network and optimizer, in a new folder or as last.pt has them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from edgerpn.errors import CheckpointError, ConfigError
from edgerpn.machine import available_cores
from edgerpn.train.checkpoint import Checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.coco import Dataset, read_coco
from edgerpn.train.data.image_cache import cache_bytes
from edgerpn.train.data.loader import BatchShare, TrainLoader
from edgerpn.train.data.splits import Split, find_train_and_val
from edgerpn.train.learning.optimizer import WeightAverage, make_optimizer
from edgerpn.train.network.model import Rpn
from edgerpn.train.network.weights import load_backbone_weights
from edgerpn.train.run.batch_size import resolve_batch_size
from edgerpn.train.run.device import Compute, keep_freed_memory, place
from edgerpn.train.run.folder import RunFolder, tensorboard_writer
from edgerpn.train.run.ranks import Ranks
from edgerpn.train.run.saving import restore
from edgerpn.train.run.state import RunProgress, TrainingRun
from edgerpn.train.run.sync_norm import synchronize_norms


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """What a run is asked to be."""

    settings: TrainSettings
    """Resolved settings, but for a batch size of 0."""
    data: Path
    """Folder with train.json, val.json and images/, or a training annotation file with val.json and images/ beside."""
    folder: RunFolder
    """Where it goes."""
    resume: bool
    """Whether to go on from last.pt."""
    backbone_weights: Path | None
    """torchvision state dict to start the backbone from."""
    log: Callable[[str], None]
    """Called with lines for people; silent in all processes but the first."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunInputs:
    """What the first process reads for all."""

    train_set: Dataset
    """Images and boxes of train.json."""
    val_set: Dataset
    """Of val.json."""
    checkpoint: Checkpoint | None
    """What to go on from; None for a new run."""


def set_up(request: RunRequest, ranks: Ranks, compute: Compute) -> TrainingRun:
    """Reads the data, makes the network and its optimizer, and starts or resumes the run folder.

    Raises:
        DataError: The data cannot be used.
        ConfigError: The settings do not fit the machine, or the folder's state does not fit the request.
        CheckpointError: last.pt and the one before it are damaged.
        TrainingStoppedError: The first process raised one of these, and this is another.
    """
    folder, log = request.folder, request.log
    inputs = ranks.compute_on_first(lambda: read_inputs(request, ranks))
    records, checkpoint = inputs.train_set.records, inputs.checkpoint
    settings = _with_batch_size(request.settings, checkpoint)
    # Before anything runs on a GPU, whose libraries read this once.
    _make_deterministic(settings, compute, ranks)
    settings = resolve_batch_size(settings, records, ranks, compute, log)
    if compute.device.type == "cpu":
        keep_freed_memory()
    # Whatever the batches that were tried have drawn.
    torch.manual_seed(settings.loop.seed)
    model = Rpn(settings.model)
    if request.backbone_weights is not None and checkpoint is None and ranks.is_first:
        # The others get these weights as the gradients' exchange is set up.
        count = load_backbone_weights(model.backbone, request.backbone_weights)
        log(f"loaded {count} tensors of the backbone from {request.backbone_weights}")
    model = place(model, compute.device)
    parallel = _parallel(model, settings, ranks, compute, log)
    loader = TrainLoader(
        records,
        settings.data,
        seed=settings.loop.seed,
        pin_memory=compute.device.type == "cuda",
        share=BatchShare(rank=ranks.rank, num_ranks=ranks.size, passes=settings.loop.accumulate),
        cache_bytes=_cache_bytes(inputs.train_set, settings, ranks),
    )
    run = TrainingRun(
        settings=settings,
        folder=folder,
        train_set=inputs.train_set,
        val_set=inputs.val_set,
        loader=loader,
        ranks=ranks,
        model=model,
        network=parallel or model,
        parallel=parallel,
        optimizer=make_optimizer(model, settings.optimizer),
        average=WeightAverage(model, settings.optimizer),
        scaler=torch.amp.GradScaler(compute.device.type, enabled=compute.dtype == torch.float16),
        compute=compute,
        parameters=tuple(p for p in model.parameters() if p.requires_grad),
        progress=RunProgress(),
    )
    if checkpoint is not None:
        restore(run, checkpoint)
        log(f"resuming at step {run.progress.step}")
    if ranks.is_first:
        if checkpoint is not None:
            folder.resume(settings, checkpoint)
        else:
            folder.start(settings)
        if settings.loop.tensorboard:
            run.tensorboard = tensorboard_writer(folder.path)
    count = sum(p.numel() for p in model.parameters())
    processes = f" on each of {ranks.size} processes" if ranks.size > 1 else ""
    log(f"{settings.model.backbone}: {count / 1e6:.2f} M parameters, {len(records)} images, {compute}{processes}")
    if loader.cache_bytes:
        log(f"decoded images are kept in {-(-loader.cache_bytes >> 20)} MiB of shared memory (data.cache)")
    return run


def read_inputs(request: RunRequest, ranks: Ranks) -> RunInputs:
    """The data sets, and the checkpoint to go on from, if any; for the first process.

    Raises:
        DataError: The data cannot be used.
        ConfigError: The settings do not fit the processes, or the folder's state does not fit the request.
        CheckpointError: last.pt and the one before it are damaged.
    """
    if request.settings.loop.compile and ranks.size > 1:
        raise ConfigError(
            [
                f"loop.compile: expected false with several processes, got true with {ranks.size}: whether compiling "
                "works is found out by each on its own, and they would get out of step; leave it off, or train in one "
                "process"
            ]
        )
    checkpoint = _checkpoint(request, ranks)
    if checkpoint is None:
        request.folder.check_new()
    train_set, val_set = (_read_split(request, split) for split in find_train_and_val(request.data))
    return RunInputs(train_set=train_set, val_set=val_set, checkpoint=checkpoint)


def _checkpoint(request: RunRequest, ranks: Ranks) -> Checkpoint | None:
    """What to go on from: when that was asked for, or when torchrun starts this very run again.

    A name that was given to torchrun (--rdzv-id, or by itself with --standalone) tells a run from others. Without one
    it must be the very torchrun that wrote the checkpoint, and it must have started its processes again.
    """
    if request.resume:
        return request.folder.read_last(request.log)
    if ranks.run_key is None or not (ranks.is_named or ranks.restarts) or not request.folder.last.exists():
        return None
    try:
        checkpoint = request.folder.read_last(request.log)
    except CheckpointError:
        return None
    state = checkpoint.training or {}
    is_same = checkpoint.settings == _with_batch_size(request.settings, checkpoint)
    if not is_same or state.get("torchrun_id") != ranks.run_key:
        return None
    request.log(f"torchrun started this run ({ranks.run_id}) again")
    return checkpoint


def _with_batch_size(settings: TrainSettings, checkpoint: Checkpoint | None) -> TrainSettings:
    """The settings, with the batch size and rate that the run has chosen before, when it is to choose them itself."""
    if checkpoint is None or settings.data.batch_size:
        return settings
    saved = checkpoint.settings
    return dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, batch_size=saved.data.batch_size),
        optimizer=dataclasses.replace(settings.optimizer, learning_rate=saved.optimizer.learning_rate),
    )


def _read_split(request: RunRequest, split: Split) -> Dataset:
    config = request.settings.data
    dataset = read_coco(*split, verify=config.verify, holdout_classes=config.holdout_classes)
    for problem in dataset.problems:
        request.log(f"{split.annotations.name}: {problem}")
    return dataset


def _make_deterministic(settings: TrainSettings, compute: Compute, ranks: Ranks) -> None:
    if settings.loop.threads:
        torch.set_num_threads(settings.loop.threads)
    elif ranks.local_size > 1:
        # torchrun asks for one thread a process, however many cores there are.
        torch.set_num_threads(max(1, available_cores() // ranks.local_size))
    if compute.device.type == "cuda":
        # cuBLAS is deterministic with a workspace of its own only; it reads this when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Some CUDA kernels have no deterministic form: they warn instead of stopping the run.
        torch.use_deterministic_algorithms(True, warn_only=True)


def _parallel(
    model: nn.Module, settings: TrainSettings, ranks: Ranks, compute: Compute, log: Callable[[str], None]
) -> DistributedDataParallel | None:
    """What exchanges the gradients between processes; it gives all of them the first one's weights."""
    if ranks.size == 1:
        return None
    has_own_statistics = True
    if settings.loop.sync_batch_norm:
        leftover = synchronize_norms(model, compute.device)
        has_own_statistics = bool(leftover)
        if leftover:
            log(
                f"loop.sync_batch_norm: {', '.join(leftover)} cannot be synchronised; each process normalises its own "
                "images there, and losses are not those of one process"
            )
    return DistributedDataParallel(
        model,
        device_ids=[compute.device.index] if compute.device.type == "cuda" else None,
        # Statistics of single processes drift apart; the first one's count.
        forward_sync_buffers=has_own_statistics,
        gradient_as_bucket_view=True,
    )


def _cache_bytes(train_set: Dataset, settings: TrainSettings, ranks: Ranks) -> int:
    config = settings.data
    if config.cache == "off":
        return 0
    return cache_bytes(
        train_set.records,
        config.augment,
        config.input_hw,
        limit_bytes=config.cache_mib << 20,
        is_whole=config.cache == "auto",
        num_processes=ranks.local_size,
    )
