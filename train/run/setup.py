"""The start of a run: data, network and optimizer, in a new folder or restored from last.pt."""

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
from edgerpn.labels.writing import is_category_name
from edgerpn.machine import available_cores
from edgerpn.train.checkpoint import Checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.coco import Dataset, read_split, require_objects
from edgerpn.train.data.findings import find_unseen, refuse
from edgerpn.train.data.image_cache import cache_bytes
from edgerpn.train.data.loader import BatchShare, TrainLoader
from edgerpn.train.data.splits import Split, find_train_and_val
from edgerpn.train.learning.optimizer import WeightAverage, make_optimizer
from edgerpn.train.network.model import ALL_CLASSES, Rpn, RpnWithMaps
from edgerpn.train.network.weights import load_backbone_weights
from edgerpn.train.run.batch_size import resolve_batch_size
from edgerpn.train.run.device import Compute, keep_freed_memory, place
from edgerpn.train.run.folder import RunFolder, TensorBoardLog
from edgerpn.train.run.ranks import Ranks
from edgerpn.train.run.saving import restore
from edgerpn.train.run.start import AUTO, Start, choose_start
from edgerpn.train.run.state import RunProgress, TrainingRun
from edgerpn.train.run.sync_norm import synchronize_norms


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """The arguments of a run."""

    settings: TrainSettings
    """Resolved settings, except for a batch size of 0."""
    data: Path
    """Folder of a data set, or its annotation file."""
    folder: RunFolder
    """Folder of the run."""
    resume: bool
    """Whether to resume from last.pt."""
    backbone_weights: Path | None
    """torchvision state dict for the backbone of a new run."""
    log: Callable[[str], None]
    """Called with lines for people; does nothing in processes other than the first."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunInputs:
    """The inputs that the first process reads for all processes."""

    train_set: Dataset
    """The training images."""
    val_set: Dataset
    """The validation images."""
    checkpoint: Checkpoint | None
    """The state to resume from; None for a new run."""
    start: Start | None
    """The weights that a new run starts from; None to resume."""


def set_up(request: RunRequest, ranks: Ranks, compute: Compute) -> TrainingRun:
    """Reads the data, creates the network and its optimizer, and starts or resumes the run folder.

    Raises:
        DataError: The data cannot be used.
        ConfigError: The settings do not fit the machine, or the folder's state does not fit the request.
        CheckpointError: last.pt and the checkpoint before it are damaged.
        TrainingStoppedError: The first process raised one of these errors, and this is another process.
    """
    folder, log = request.folder, request.log
    inputs = ranks.compute_on_first(lambda: read_inputs(request, ranks))
    checkpoint = inputs.checkpoint
    settings = with_class_names(_as_saved(request.settings, checkpoint), inputs.train_set)
    train_set, val_set = (_with_classes(each, settings) for each in (inputs.train_set, inputs.val_set))
    records = train_set.records
    # Before the first GPU operation: the libraries read these settings once.
    _make_deterministic(settings, compute, ranks)
    settings = resolve_batch_size(settings, records, ranks, compute, log)
    if compute.device.type == "cpu":
        keep_freed_memory()
    # Again, because trial batches may have drawn random numbers.
    torch.manual_seed(settings.loop.seed)
    model = Rpn(settings.model)
    if inputs.start is not None:
        settings = inputs.start.apply(model, settings, log)
    if request.backbone_weights is not None and checkpoint is None and ranks.is_first:
        # DistributedDataParallel copies these weights to the other processes.
        count = load_backbone_weights(model.backbone, request.backbone_weights)
        log(f"loaded {count} tensors of the backbone from {request.backbone_weights}")
    model = place(model, compute.device)
    network = RpnWithMaps(model)
    parallel = _parallel(network, settings, ranks, compute, log)
    loader = TrainLoader(
        records,
        settings.data,
        seed=settings.loop.seed,
        pin_memory=compute.device.type == "cuda",
        share=BatchShare(rank=ranks.rank, num_ranks=ranks.size, passes=settings.loop.accumulate),
        cache_bytes=_cache_bytes(train_set, settings, ranks),
    )
    run = TrainingRun(
        settings=settings,
        folder=folder,
        train_set=train_set,
        val_set=val_set,
        loader=loader,
        ranks=ranks,
        model=model,
        network=parallel or network,
        parallel=parallel,
        optimizer=make_optimizer(model, settings.optimizer),
        average=WeightAverage(model, settings.optimizer),
        scaler=torch.amp.GradScaler(compute.device.type, enabled=compute.dtype == torch.float16),
        compute=compute,
        parameters=tuple(p for p in model.parameters() if p.requires_grad),
        progress=RunProgress(),
    )
    if checkpoint is not None:
        restore(run, checkpoint, log)
        log(f"resuming at step {run.progress.step}")
        if run.fraction >= 1:
            length = "minutes" if settings.loop.minutes else "epochs"
            log(f"its loop.{length} are over; a larger --{length}, which counts from the first step, continues the run")
    if ranks.is_first:
        if checkpoint is not None:
            folder.resume(settings, checkpoint)
        else:
            folder.start(settings)
        if settings.loop.tensorboard:
            run.tensorboard = TensorBoardLog(folder.path, log, step=run.progress.step)
    count = sum(p.numel() for p in model.parameters())
    processes = f" on each of {ranks.size} processes" if ranks.size > 1 else ""
    log(f"{settings.model.backbone}: {count / 1e6:.2f} M parameters, {len(records)} images, {compute}{processes}")
    if loader.cache_bytes:
        log(f"caching decoded images in {-(-loader.cache_bytes >> 20)} MiB of shared memory (data.cache)")
    return run


def read_inputs(request: RunRequest, ranks: Ranks) -> RunInputs:
    """Reads the data sets and the checkpoint to resume from, if any; for the first process.

    Raises:
        DataError: The data cannot be used.
        ConfigError: The settings do not fit the processes or the weights to start from, or the folder's state does not
            fit the request.
        CheckpointError: The weights to start from cannot be read, or last.pt and the checkpoint before it are damaged.
    """
    if request.settings.loop.compile and ranks.size > 1:
        raise ConfigError(
            [
                f"loop.compile: expected false with several processes, got true with {ranks.size}: compilation could "
                "fail in one process only, and they would get out of step; turn it off, or train in one process"
            ]
        )
    checkpoint = _checkpoint(request, ranks)
    if checkpoint is None:
        request.folder.check_new()
    splits = find_train_and_val(request.data, request.settings.data.choice, request.log)
    train_set, val_set = (_read_split(request, split) for split in splits)
    _check_sets(request.settings, train_set, val_set, splits)
    start = None
    if checkpoint is None:
        settings = with_class_names(request.settings, train_set)
        start = choose_start(settings, backbone_weights=request.backbone_weights)
    return RunInputs(train_set=train_set, val_set=val_set, checkpoint=checkpoint, start=start)


def _checkpoint(request: RunRequest, ranks: Ranks) -> Checkpoint | None:
    """Returns the state to resume from: with --resume, or when torchrun restarts this very run.

    A name of the torchrun job (--rdzv-id, or automatic with --standalone) identifies the run. Without a name, the
    checkpoint must come from the same torchrun process, and that one must have restarted its workers.
    """
    if request.resume:
        return _read_last(request)
    if ranks.run_key is None or not (ranks.is_named or ranks.restarts) or not request.folder.last.exists():
        return None
    try:
        checkpoint = _read_last(request)
    except CheckpointError:
        return None
    state = checkpoint.training or {}
    is_same = checkpoint.settings == _as_saved(request.settings, checkpoint)
    if not is_same or state.get("torchrun_id") != ranks.run_key:
        return None
    request.log(f"torchrun restarted this run ({ranks.run_id})")
    return checkpoint


def _read_last(request: RunRequest) -> Checkpoint:
    if request.folder.last.exists():
        request.folder.keep_others_out()  # before, because a run that goes on writes newer ones
    return request.folder.read_last(request.log)


def _as_saved(settings: TrainSettings, checkpoint: Checkpoint | None) -> TrainSettings:
    """Returns the settings with what the run chose before, where it is automatic: start, classes, batch size, rate."""
    if checkpoint is None:
        return settings
    saved = checkpoint.settings
    if settings.loop.start == AUTO:
        settings = dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, start=saved.loop.start))
    if settings.model.classes == ALL_CLASSES and saved.model.classes:
        settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, classes=saved.model.classes))
    if settings.data.batch_size:
        return settings
    return dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, batch_size=saved.data.batch_size),
        optimizer=dataclasses.replace(settings.optimizer, learning_rate=saved.optimizer.learning_rate),
    )


def with_class_names(settings: TrainSettings, train_set: Dataset) -> TrainSettings:
    """Returns the settings with the names of the classes that the second stage learns, if there is one.

    Raises:
        ConfigError: The training set has no object of a class that is named in the settings, or none of any class; or
            the name of a class is not one line of text.
    """
    names, present = settings.model.classes, train_set.present_classes
    odd = [name for name in (present if names == ALL_CLASSES else names) if not is_category_name(name)]
    if odd:
        raise ConfigError(
            [
                f"model.classes: {train_set.annotation_file} has objects of {', '.join(map(repr, odd))}; expected "
                "names in one line of printable text, for the files of other programs; rename them in the data set"
            ]
        )
    if names and not present:
        raise ConfigError(
            [
                f"model.classes: none of the {train_set.num_objects} objects of {train_set.annotation_file} has a "
                "class; expected named categories; add them, or train without --classify"
            ]
        )
    if names == ALL_CLASSES:
        return dataclasses.replace(settings, model=dataclasses.replace(settings.model, classes=present))
    missing = [name for name in names if name not in present]
    if missing:
        raise ConfigError(
            [
                f"model.classes: {train_set.annotation_file} has no object of {', '.join(map(repr, missing))} to learn "
                f"from; it has {', '.join(map(repr, present))}"
            ]
        )
    return settings


def _with_classes(dataset: Dataset, settings: TrainSettings) -> Dataset:
    return dataset.with_classes(settings.model.classes) if settings.model.classes else dataset


def _read_split(request: RunRequest, split: Split) -> Dataset:
    config = request.settings.data
    by_class = bool(request.settings.model.classes)
    dataset = read_split(split, verify=config.verify, holdout_classes=config.holdout_classes, by_class=by_class)
    for problem in dataset.problems:
        request.log(f"{split.label}: {problem}")
    return dataset


def _check_sets(settings: TrainSettings, train_set: Dataset, val_set: Dataset, splits: tuple[Split, Split]) -> None:
    """Checks before the first step that there is something to learn and to measure.

    Raises:
        DataError: A set has no objects, or most of those to learn from are too small for the network's input.
    """
    require_objects(train_set, f"{splits[0].annotations}", "to learn from")
    require_objects(val_set, f"{splits[1].annotations}", "to measure recall on")
    config = settings.data
    unseen = find_unseen(
        ((record.hw, record.boxes_xyxy) for record in train_set.records),
        config.input_hw,
        config.augment.scale_range[1],
        config.augment.min_box_px,
    )
    refuse([unseen, *train_set.findings], config.allow, f"{splits[0].annotations}", train_set.problems)


def _make_deterministic(settings: TrainSettings, compute: Compute, ranks: Ranks) -> None:
    if settings.loop.threads:
        torch.set_num_threads(settings.loop.threads)
    elif ranks.local_size > 1:
        # torchrun sets one thread per process, however many cores there are.
        torch.set_num_threads(max(1, available_cores() // ranks.local_size))
    if compute.device.type == "cuda":
        # cuBLAS is deterministic only with its own workspace; it reads this when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Some CUDA kernels have no deterministic form: these warn instead of stopping the run.
        torch.use_deterministic_algorithms(True, warn_only=True)


def _parallel(
    model: nn.Module, settings: TrainSettings, ranks: Ranks, compute: Compute, log: Callable[[str], None]
) -> DistributedDataParallel | None:
    """Returns the wrapper that averages gradients over processes and copies the first one's weights to all."""
    if ranks.size == 1:
        return None
    has_own_statistics = True
    if settings.loop.sync_batch_norm:
        leftover = synchronize_norms(model, compute.device)
        has_own_statistics = bool(leftover)
        if leftover:
            log(
                f"loop.sync_batch_norm: {', '.join(leftover)} cannot be synchronised; each process normalises its own "
                "images there, so losses differ from those of a single process"
            )
    return DistributedDataParallel(
        model,
        device_ids=[compute.device.index] if compute.device.type == "cuda" else None,
        # Statistics of separate processes diverge; those of the first process apply.
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
