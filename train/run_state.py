"""The state that a training run carries: made at the start, saved in last.pt, restored by --resume."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgerpn.errors import CheckpointError
from edgerpn.train.anchors import grid_anchors
from edgerpn.train.backbones import load_backbone_weights
from edgerpn.train.checkpoint import Checkpoint
from edgerpn.train.coco import Dataset, read_coco
from edgerpn.train.config import TrainSettings
from edgerpn.train.device import Compute, choose_compute, place
from edgerpn.train.loader import TrainLoader
from edgerpn.train.model import Rpn
from edgerpn.train.optimizer import WeightAverage, make_optimizer
from edgerpn.train.run_folder import RunFolder, tensorboard_writer


@dataclass(kw_only=True, slots=True)
class Progress:
    """Counters of a run, saved in last.pt."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    evaluations: int = 0
    best_ar100: float = -1.0
    best_metrics: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class Run:
    """Everything that a run works with."""

    settings: TrainSettings
    folder: RunFolder
    train_set: Dataset
    val_set: Dataset
    loader: TrainLoader
    model: Rpn
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    scaler: torch.amp.GradScaler
    compute: Compute
    anchors: list[Tensor]
    progress: Progress
    tensorboard: Any = None

    @property
    def fraction(self) -> float:
        """How much of the run is done, 0..1; a little above 1 when its time is over."""
        if self.settings.loop.minutes:
            return self.progress.seconds / (60 * self.settings.loop.minutes)
        return self.progress.step / (self.settings.loop.epochs * self.loader.batches_per_epoch)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate and export: their average, when the run keeps one."""
        return self.average.state if self.settings.optimizer.ema_decay else self.model.state_dict()


def set_up(
    settings: TrainSettings,
    data: Path,
    folder: RunFolder,
    resume: bool,
    backbone_weights: Path | None,
    say: Callable[[str], None],
) -> Run:
    """Reads the data, makes the network and its optimizer, and starts or resumes the run folder.

    Raises:
        DataError: The data cannot be used.
        ConfigError: The settings do not fit the machine, or the folder's state does not fit `resume`.
        CheckpointError: last.pt is damaged.
    """
    compute = choose_compute(settings.loop)
    if not resume:
        folder.check_new()
    train_set = _read(data, "train", settings, say)
    val_set = _read(data, "val", settings, say)
    _make_deterministic(settings, compute)
    model = Rpn(settings.model)
    if backbone_weights is not None and not resume:
        count = load_backbone_weights(model.backbone, backbone_weights)
        say(f"loaded {count} tensors of the backbone from {backbone_weights}")
    model = place(model, compute.device)
    run = Run(
        settings=settings,
        folder=folder,
        train_set=train_set,
        val_set=val_set,
        loader=TrainLoader(
            train_set.records, settings.data, seed=settings.loop.seed, pin_memory=compute.device.type == "cuda"
        ),
        model=model,
        optimizer=make_optimizer(model, settings.optimizer),
        average=WeightAverage(model, settings.optimizer),
        scaler=torch.amp.GradScaler(compute.device.type, enabled=compute.dtype == torch.float16),
        compute=compute,
        anchors=[a.to(compute.device) for a in grid_anchors(settings.model.anchors, settings.data.input_hw)],
        progress=Progress(),
    )
    if resume:
        _restore(run, folder.resume(settings))
        say(f"resuming at step {run.progress.step}")
    else:
        folder.start(settings)
    if settings.loop.tensorboard:
        run.tensorboard = tensorboard_writer(folder.path)
    parameters = sum(p.numel() for p in model.parameters())
    say(f"{settings.model.backbone}: {parameters / 1e6:.2f} M parameters, {len(train_set.records)} images, {compute}")
    return run


def _read(data: Path, split: str, settings: TrainSettings, say: Callable[[str], None]) -> Dataset:
    dataset = read_coco(
        data / f"{split}.json",
        data / "images",
        verify=settings.data.verify,
        holdout_classes=settings.data.holdout_classes,
    )
    for problem in dataset.problems:
        say(f"{split}.json: {problem}")
    return dataset


def _make_deterministic(settings: TrainSettings, compute: Compute) -> None:
    torch.manual_seed(settings.loop.seed)
    if settings.loop.threads:
        torch.set_num_threads(settings.loop.threads)
    if compute.device.type == "cuda":
        # cuBLAS is deterministic with a workspace of its own only; it reads this when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Some CUDA kernels have no deterministic form: they warn instead of stopping the run.
        torch.use_deterministic_algorithms(True, warn_only=True)


def save(run: Run, *, is_best: bool, metrics: dict[str, float] | None = None) -> None:
    """Writes last.pt, and best.pt when `is_best`."""
    checkpoint = Checkpoint(
        settings=run.settings,
        weights={name: value.cpu() for name, value in run.weights.items()},
        step=run.progress.step,
        metrics=metrics or {},
        data_sha256=run.train_set.sha256,
        data_folder=str(run.train_set.annotation_file.resolve().parent),
        training={
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "average_updates": run.average.num_updates,
            "average": run.average.state,
            "scaler": run.scaler.state_dict(),
            "progress": dataclasses.asdict(run.progress),
        },
    )
    run.folder.save(checkpoint, is_best=is_best)


def _restore(run: Run, checkpoint: Checkpoint) -> None:
    state = checkpoint.training
    if state is None:
        raise CheckpointError(
            f"{run.folder.last}: holds weights, but no state to go on from, like a best.pt; "
            "put the run's last.pt there, or start a new run"
        )
    old, new = checkpoint.settings.optimizer.kind, run.settings.optimizer.kind
    if old != new:
        raise CheckpointError(f"{run.folder.last}: the run uses {old}, which cannot go on as {new}; start a new run")
    if checkpoint.data_sha256 != run.train_set.sha256:
        raise CheckpointError(f"{run.folder.last}: the run was trained on another train.json; start a new run")
    old_classes, new_classes = checkpoint.settings.data.holdout_classes, run.settings.data.holdout_classes
    if set(old_classes) != set(new_classes):
        raise CheckpointError(
            f"{run.folder.last}: the run holds out {', '.join(old_classes) or 'no class'}, and cannot go on holding "
            f"out {', '.join(new_classes) or 'none'}; start a new run"
        )
    if checkpoint.settings.data.batch_size != run.settings.data.batch_size:
        raise CheckpointError(
            f"{run.folder.last}: the run uses batches of {checkpoint.settings.data.batch_size}, and its place in the "
            f"epoch counts them; it cannot go on with {run.settings.data.batch_size}"
        )
    # Loading brings the old run's rates and decays back; the settings of this one hold.
    chosen = [{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups]
    try:
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        for group, values in zip(run.optimizer.param_groups, chosen, strict=True):
            group.update(values)
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[:2][-1].strip().rstrip(".")
        raise CheckpointError(
            f"{run.folder.last}: the saved state does not fit these settings: {first}. "
            "Resume with the settings of the run, or start a new one."
        ) from error
    run.average.state = {name: value.to(run.compute.device) for name, value in state["average"].items()}
    run.average.num_updates = state["average_updates"]
    run.scaler.load_state_dict(state["scaler"])
    run.progress = Progress(**state["progress"])
    # Counted anew, because --resume may have lengthened the run.
    run.progress.evaluations = int(run.fraction * run.settings.loop.evaluations + 1e-9)
