"""Saving the state of a run in last.pt and best.pt, also on a full disk, and restoring it."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from operator import attrgetter

from edgerpn.errors import CheckpointError, TrainingStoppedError
from edgerpn.train.checkpoint import Checkpoint
from edgerpn.train.data.coco import Dataset
from edgerpn.train.network.anchors import AnchorConfig
from edgerpn.train.run.failures import how_to_resume
from edgerpn.train.run.state import RunProgress, TrainingRun, measured_proposals

_LARGEST_SHARE = 1 / 50
"""Largest share of a run's time to spend on saving between evaluations."""
_STATE = "the checkpoint"
_ANCHORS = (f"model.anchors.{field.name}" for field in dataclasses.fields(AnchorConfig))
_MEANING = {name: name for name in (*_ANCHORS, "model.mean_bgr", "model.std_bgr", "data.input_hw")}
_MEANING["data.exif"] = "data.choice.images.reading"  # "auto" reads as "ignore" does
"""Settings that give weights and figures their meaning, while the tensors of a checkpoint fit others too; and where
their values are found."""


class CheckpointSaver:
    """Saves a run in the first process; while the disk is full the run continues without new checkpoints.

    It does not need the other processes, so it also works when they are gone.
    """

    def __init__(self, run: TrainingRun, log: Callable[[str], None]) -> None:
        self._run = run
        self._log = log
        self._saved_at = time.monotonic()
        self._took_s = 0.0
        self._failure: str | None = None

    def is_due(self) -> bool:
        """Returns whether it is time to write last.pt."""
        pause = max(self._run.settings.loop.save_every_s, self._took_s / _LARGEST_SHARE)
        return self._run.ranks.is_first and time.monotonic() - self._saved_at >= pause

    def save(self, metrics: dict[str, float] | None = None) -> bool:
        """Writes log and last.pt; logs a failure, and returns whether last.pt was written.

        The caller must have checked that the numbers of all steps are finite.
        """
        if not self._run.ranks.is_first:
            return True
        began = time.monotonic()
        checkpoint = _checkpoint(self._run, metrics or {})
        self._write(self._run.folder.write_log, "the log")
        is_done = self._write(lambda: self._run.folder.save(checkpoint), _STATE)
        self._saved_at = time.monotonic()
        self._took_s = self._saved_at - began
        return is_done

    def save_best(self, metrics: dict[str, float] | None = None) -> bool:
        """As `save`, for best.pt."""
        if not self._run.ranks.is_first:
            return True
        checkpoint = _checkpoint(self._run, metrics or {})
        is_done = self._write(lambda: self._run.folder.save_best(checkpoint), _STATE)
        # Otherwise the next step would save again at once.
        self._saved_at = time.monotonic()
        return is_done

    def draw(self) -> None:
        """Writes log and loss plot."""
        if self._run.ranks.is_first:
            self._write(self._run.folder.write_log, "the log")
            self._write(self._run.folder.plot_log, "the loss plot")

    def finish(self) -> None:
        """Checks that the last state was saved.

        Raises:
            TrainingStoppedError: It was not saved.
        """
        if self._failure is not None:
            raise TrainingStoppedError(
                f"{self._failure} at the end of the run (step {self._run.progress.step}), so its last state is "
                f"lost. Free space; {how_to_resume(self._run.folder)}"
            )

    def _write(self, write: Callable[[], None], what: str) -> bool:
        try:
            write()
        except OSError as error:
            failure = f"{what} could not be written: {error.strerror or error}"
            self._log(f"step {self._run.progress.step}: {failure}; training continues, and {_last_saved(self._run)}")
            if what == _STATE:
                self._failure = failure
            return False
        if what == _STATE:
            self._failure = None
        return True


def _last_saved(run: TrainingRun) -> str:
    newest = run.folder.newest_intact
    return f"{newest.name} stays as it was" if newest is not None else f"there is no {run.folder.last.name} yet"


def _checkpoint(run: TrainingRun, metrics: dict[str, float]) -> Checkpoint:
    return Checkpoint(
        settings=run.settings,
        weights={name: value.cpu() for name, value in run.weights.items()},
        step=run.progress.step,
        metrics=metrics,
        data_sha256=run.train_set.sha256,
        data_folder=str(run.train_set.folder.resolve()),
        training={
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "average_updates": run.average.num_updates,
            "average": run.average.state,
            "scaler": run.scaler.state_dict(),
            "progress": dataclasses.asdict(run.progress),
            "images_per_step": run.loader.batch_size,
            "torchrun_id": run.ranks.run_key,
            "val_sha256": run.val_set.sha256,
            "val_images": _images_of(run.val_set),
        },
    )


def _images_of(dataset: Dataset) -> str:
    """Returns a digest of the images that are used, which the annotations alone do not determine."""
    return hashlib.sha256(repr([record.image_id for record in dataset.records]).encode()).hexdigest()


def restore(run: TrainingRun, checkpoint: Checkpoint, log: Callable[[str], None]) -> None:
    """Restores the state of a run from a checkpoint, without the best figures if they do not compare with later ones.

    Raises:
        CheckpointError: It has no training state, or other data, another optimizer, network or input size than the run.
    """
    state = checkpoint.training
    if state is None:
        raise CheckpointError(
            f"{run.folder.last}: holds weights without the training state, as best.pt does; put the run's last.pt "
            "there, or start a new run"
        )
    old, new = checkpoint.settings.optimizer.kind, run.settings.optimizer.kind
    if old != new:
        raise CheckpointError(
            f"{run.folder.last}: the run uses {old} and cannot continue with {new}; use --set optimizer.kind={old}, or "
            "start a new run"
        )
    if checkpoint.data_sha256 != run.train_set.sha256:
        raise CheckpointError(
            f"{run.folder.last}: the run was trained on other annotations (sha256 {checkpoint.data_sha256[:16]}...) "
            f"than {run.train_set.folder} has now ({run.train_set.sha256[:16]}...), and a program that only rewrites "
            "them changes them too, as does one that adds or removes photographs whose times decide the validation "
            "split; restore them, or start a new run"
        )
    old_classes, new_classes = checkpoint.settings.data.holdout_classes, run.settings.data.holdout_classes
    if set(old_classes) != set(new_classes):
        raise CheckpointError(
            f"{run.folder.last}: the run holds out {', '.join(old_classes) or 'no class'} and cannot continue with "
            f"{', '.join(new_classes) or 'no class'} held out; start a new run"
        )
    old_names, new_names = checkpoint.settings.model.classes, run.settings.model.classes
    if old_names != new_names:
        raise CheckpointError(
            f"{run.folder.last}: the run learns {', '.join(old_names) or 'no classes'} and cannot continue with "
            f"{', '.join(new_names) or 'no classes'} (model.classes, --classify); resume with the same, or start a new "
            "run"
        )
    old_start, new_start = checkpoint.settings.loop.start, run.settings.loop.start
    if old_start != new_start:
        raise CheckpointError(
            f"{run.folder.last}: the run started from {old_start} weights and cannot start again from {new_start} "
            "(loop.start, --from); resume without it, or start a new run"
        )
    if checkpoint.settings.data.batch_size != run.settings.data.batch_size:
        raise CheckpointError(
            f"{run.folder.last}: the run uses batches of {checkpoint.settings.data.batch_size} and counts its position "
            f"in the epoch by them, so it cannot continue with {run.settings.data.batch_size}"
        )
    images_per_step = state.get("images_per_step", run.loader.batch_size)
    if images_per_step != run.loader.batch_size:
        raise CheckpointError(
            f"{run.folder.last}: the run takes {images_per_step} images per step from its small data set; with this "
            f"number of processes and loop.accumulate it would take {run.loader.batch_size}; use the old numbers"
        )
    for name, place in _MEANING.items():
        was, now = (attrgetter(place)(each) for each in (checkpoint.settings, run.settings))
        if was != now:
            raise CheckpointError(
                f"{run.folder.last}: the run has {name} = {was} and cannot continue with {now}, which changes the "
                "meaning of its weights or figures; resume without --size, --exif, --set or --config that changes "
                f"it, or start a new run in another folder, from these weights with --from {run.folder.last}"
            )
    # Loading restores the old run's rates and decays; the settings of this run apply.
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
    counters = {field.name for field in dataclasses.fields(RunProgress)}
    # Older versions had more.
    run.progress = RunProgress(**{name: value for name, value in state["progress"].items() if name in counters})
    if run.progress.best_metrics and not run.folder.best.exists():
        run.progress.best_metrics, run.progress.evaluated_step = {}, 0
        log(f"{run.folder.best} is missing, so the best figures so far do not count; the next evaluation writes it")
    # Older versions did not save it.
    if state.get("val_sha256", run.val_set.sha256) != run.val_set.sha256:
        run.progress.best_metrics = {}
        log(
            f"{run.val_set.annotation_file}: the validation annotations have changed, so the best figures so far do "
            "not count; the next evaluation, if there is one, writes best.pt"
        )
    elif state.get("val_images", _images_of(run.val_set)) != _images_of(run.val_set):
        run.progress.best_metrics = {}
        log(
            f"{run.val_set.annotation_file}: other validation images than before are usable, so the best figures so "
            "far do not count; the next evaluation, if there is one, writes best.pt"
        )
    if measured_proposals(checkpoint.settings) != measured_proposals(run.settings):
        run.progress.best_metrics = {}
        log(
            "the settings of proposals have changed, so the best figures so far do not count; the next evaluation, if "
            "there is one, writes best.pt"
        )
    # Images may have been lost since.
    run.progress.batch = min(run.progress.batch, run.loader.batches_per_epoch)
    # Counted again, because --resume may have lengthened the run.
    run.progress.evaluations = run.num_due_evaluations
